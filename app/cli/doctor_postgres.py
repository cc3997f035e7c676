"""Findings about the server, the login role and the connection of the PostgreSQL store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from app.cli.doctor_finding import DoctorFinding
from app.composition.stores import opened_repository
from app.config.database_url import DatabaseUrl
from app.config.settings import Settings, SettingsError
from app.errors import StoreError

if TYPE_CHECKING:  # imports asyncpg
    from app.stores.postgres.server import ServerReport

_SUBJECT: Final = "store"
_SHOWN: Final = 3
_REPLACE_ROLE: Final = "use a login role that has token_vault alone (migrations/README.md, The role token_vault)"


def server_findings(settings: Settings) -> Iterator[DoctorFinding]:
    """Report version, privileges, pooler and TLS; nothing if the database cannot be reached, which is a finding."""
    try:
        report = asyncio.run(_read(settings))
    except (StoreError, SettingsError):
        return
    yield from _server_findings(report)
    yield from _role_findings(report)
    yield from _pooler_findings(report)
    yield _tls_finding(settings.read_database_url())


async def _read(settings: Settings) -> ServerReport:
    from app.stores.postgres.repository import PostgresRepository  # noqa: PLC0415  imports asyncpg

    async with opened_repository(settings) as tokens:
        if not isinstance(tokens, PostgresRepository):
            raise SettingsError("TOKEN_STORE is not postgres")
        return await tokens.server()


def _server_findings(report: ServerReport) -> Iterator[DoctorFinding]:
    from app.stores.postgres.server import MINIMUM_VERSION  # noqa: PLC0415  its package imports asyncpg

    text = f"PostgreSQL {report.version}"
    if report.version < MINIMUM_VERSION:
        yield DoctorFinding.failure(_SUBJECT, f"{text} is older than {MINIMUM_VERSION}; upgrade the server")
    else:
        yield DoctorFinding.ok(_SUBJECT, f"{text}, user {_printable(report.user)}")
    if report.unsafe_settings:
        names = ", ".join(report.unsafe_settings)
        yield DoctorFinding.warning(
            _SUBJECT, f"a crash of the server may lose the last acknowledged writes: set to on {names}"
        )


def _role_findings(report: ServerReport) -> Iterator[DoctorFinding]:
    user = f"the user {_printable(report.user)} of DATABASE_URL"
    if report.missing:
        yield DoctorFinding.failure(
            _SUBJECT, f"{user} may not {', '.join(report.missing)} on oauth_tokens: grant it token_vault"
        )
    if report.superuser:
        yield DoctorFinding.warning(_SUBJECT, f"{user} is a superuser: {_REPLACE_ROLE}")
        return  # it has everything else too
    if report.attributes:
        yield DoctorFinding.warning(_SUBJECT, f"{user} has {', '.join(report.attributes)}: {_REPLACE_ROLE}")
    if report.memberships:
        yield DoctorFinding.warning(_SUBJECT, f"{user} is a member of {_listed(report.memberships)}: {_REPLACE_ROLE}")
    if report.other_tables:
        yield DoctorFinding.warning(
            _SUBJECT,
            f"{user} may use {len(report.other_tables)} more tables ({_listed(report.other_tables)}): revoke it",
        )
    if not (report.missing or report.attributes or report.memberships or report.other_tables):
        yield DoctorFinding.ok(_SUBJECT, f"{user} may use oauth_tokens and no other table")


def _pooler_findings(report: ServerReport) -> Iterator[DoctorFinding]:
    if report.direct:
        yield DoctorFinding.ok(_SUBJECT, "the connection is direct: statements are prepared")
        return
    yield DoctorFinding.ok(_SUBJECT, "the connection goes through a pooler: no statement is prepared")
    if not report.has_timeout:
        text = (
            "statements have no time limit on the server, because a pooler keeps the vault's: "
            f"alter role {_printable(report.user)} set statement_timeout = '3s'"
        )
        yield DoctorFinding.warning(_SUBJECT, text)


def _tls_finding(url: DatabaseUrl) -> DoctorFinding:
    if not url.hosts:
        return DoctorFinding.ok(_SUBJECT, "the connection is a Unix socket")
    if url.verifies_server:
        return DoctorFinding.ok(_SUBJECT, "the connection has TLS, and the server's certificate and name are verified")
    if not url.crosses_network:
        return DoctorFinding.ok(_SUBJECT, f"sslmode={url.ssl_mode}, and the database is on this machine")
    return DoctorFinding.failure(
        _SUBJECT, f"sslmode={url.ssl_mode} verifies no server: remove it from DATABASE_URL, and set sslrootcert"
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(_printable, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")


def _printable(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name)
