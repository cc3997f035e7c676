"""DATABASE_URL: the address of the PostgreSQL store, and the TLS that it asks for.

The URL has libpq's form, with one host or several:
`postgresql://user:password@host1:5432,host2:5432/database?sslmode=verify-full&sslrootcert=/etc/ssl/ca.pem`.
<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from app.config.certificate_authorities import client_ssl_context
from app.config.listening import is_loopback
from app.config.secret_files import SecretFileError, read_secret

_OPTIONS: Final = frozenset(
    {
        *("user", "password", "passfile", "host", "port", "dbname"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs"),
    }
)
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_PRIMARY: Final = ("read-write", "primary")
_MAXIMUM_HOSTS: Final = 8
_PORT: Final = 5432


class DatabaseUrlError(Exception):
    """What is wrong with the URL, without any part of its value."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A parsed URL. `hosts` is empty for a Unix socket, which `text` names."""

    text: str = field(repr=False)
    hosts: tuple[tuple[str, int], ...]
    ssl_mode: str
    certificate_authority: str | None
    certificate: str | None
    key: str | None
    target_session_attrs: str

    @property
    def verifies_server(self) -> bool:
        return not self.hosts or self.ssl_mode == "verify-full"

    @property
    def crosses_network(self) -> bool:
        return any(not is_loopback(host) for host, _ in self.hosts)

    def tls(self) -> ssl.SSLContext | str | None:
        """Return a context that verifies the server and its name, or the weaker mode of the URL.

        Raises `DatabaseUrlError` if a file of the URL cannot be used.
        """
        if not self.hosts:
            return None
        if self.ssl_mode != "verify-full":
            return self.ssl_mode
        try:
            if self.certificate_authority in {None, "system"}:
                context = client_ssl_context()
            else:
                context = ssl.create_default_context(cafile=self.certificate_authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except OSError:
            raise DatabaseUrlError("a file that sslrootcert, sslcert or sslkey names cannot be used") from None
        return context


def parse_database_url(text: str) -> DatabaseUrl:
    """Return the parsed URL; raises `DatabaseUrlError`."""
    if not text.isprintable() or " " in text:
        raise DatabaseUrlError("contains a space or a line break; write them as %20 or %0A")
    try:
        parts = urlsplit(text)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        hosts = tuple(_hosts(parts.netloc))
    except ValueError:
        raise DatabaseUrlError("is not a URL like postgresql://user:password@host:5432/database") from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise DatabaseUrlError("must start with postgresql://")
    options = dict(pairs)
    _require_known_options(options, given=len(pairs))
    _require_hosts(hosts, options)
    mode, target = options.get("sslmode", "verify-full"), options.get("target_session_attrs", "read-write")
    if mode not in _SSL_MODES:
        raise DatabaseUrlError(f"has an sslmode that is none of {', '.join(_SSL_MODES)}")
    if target not in _PRIMARY:
        raise DatabaseUrlError(
            "must have target_session_attrs=read-write (or none): a replica may not have a token that is stored"
        )
    return DatabaseUrl(
        text, hosts, mode, options.get("sslrootcert"), options.get("sslcert"), options.get("sslkey"), target
    )


def _require_known_options(options: Mapping[str, str], *, given: int) -> None:
    if unknown := sorted(name for name in options if name not in _OPTIONS):
        raise DatabaseUrlError(
            f"has {len(unknown)} options that the vault does not know; it knows {', '.join(sorted(_OPTIONS))}"
        )
    if len(options) < given:
        raise DatabaseUrlError("has an option twice")


def _require_hosts(hosts: Sequence[tuple[str, int]], options: Mapping[str, str]) -> None:
    if not hosts and not options.get("host", "").startswith("/"):
        raise DatabaseUrlError("names no host before the path; the option host is for the folder of a Unix socket")
    if len(hosts) > _MAXIMUM_HOSTS:
        raise DatabaseUrlError(f"has more than {_MAXIMUM_HOSTS} hosts")


def _hosts(netloc: str) -> Iterator[tuple[str, int]]:
    """Yield the hosts of `user:password@host1:port1,[::1]:port2`; raises `ValueError`."""
    addresses = netloc.rpartition("@")[2]
    for address in addresses.split(",") if addresses else []:
        if address.startswith("["):
            host, closed, port = address[1:].partition("]")
            port = port.removeprefix(":")
            if not closed:
                raise ValueError
        else:
            host, _, port = address.partition(":")
        number = int(port) if port else _PORT
        if not host or not 0 < number < 2**16:
            raise ValueError
        yield unquote(host), number


def database_url_source(url: SecretStr | None, file: Path | None) -> Callable[[], DatabaseUrl]:
    """Return a function that parses the URL; one from a file is read each time, so its password may be rotated."""

    def read() -> DatabaseUrl:
        if file is None:
            if url is None:
                raise DatabaseUrlError("is not set")
            return parse_database_url(url.get_secret_value())
        try:
            return parse_database_url(read_secret(str(file)))
        except SecretFileError as error:
            raise DatabaseUrlError(str(error)) from None

    return read
