# The vault as a container. Build:
#
#   docker build --tag token-vault:0.2.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#
# Both stages use the same image, because the virtual environment refers to its Python.
FROM python:3.13-slim-bookworm AS build
WORKDIR /source
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/vault \
 && /opt/vault/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
    -r requirements.lock
COPY app app
COPY migrations migrations
RUN /opt/vault/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
 && /opt/vault/bin/pip uninstall --yes setuptools pip

FROM python:3.13-slim-bookworm
# A fixed uid keeps the owner of a volume the same in every image.
RUN pip uninstall --yes --root-user-action ignore pip \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin vault \
 && install --directory --owner vault --group vault --mode 0700 /data
COPY --from=build /opt/vault /opt/vault
# The program has the migrations in itself; these are for psql, and for PulsePlan's path of the rewrap.
COPY LICENSE /usr/share/token-vault/
COPY migrations /usr/share/token-vault/migrations
COPY scripts/migrate_to_kms.py /usr/share/token-vault/scripts/
ARG REVISION=unknown
LABEL org.opencontainers.image.title="PulsePlan token vault" \
      org.opencontainers.image.description="Stores, reveals and rotates users' OAuth and API tokens" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/vault/bin:$PATH \
    SQLITE_PATH=/data/vault.db \
    SERVICE_KEYS_FILE=/data/service-keys.json
USER 10001:10001
# `token-vault` looks for .env here; a container does not need one, because it has an environment.
WORKDIR /data
VOLUME /data
EXPOSE 8080
# It sends GET /healthz, not /readyz: a store that is down must not restart the process.
# It reads PORT, TLS_CERT_FILE and TLS_CLIENT_CA_FILE.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["token-vault", "health", "--host", "127.0.0.1"]
# After SIGTERM the vault finishes the requests in flight, for up to 25 seconds; the default of `docker stop` is 10.
CMD ["token-vault", "serve", "--host", "0.0.0.0"]
