"""The meaning of PostgreSQL's and asyncpg's errors.

A server's error quotes rows and SQL, so only its SQLSTATE is read; none of its text is passed on or logged.
<https://www.postgresql.org/docs/current/errcodes-appendix.html>
"""

from __future__ import annotations

import ssl
from typing import Final

import asyncpg

from app.errors import StoreError, StoreMisconfigured, StoreTimeout, StoreUnavailable
from app.stores.lost_answers import UnknownOutcomeError
from app.stores.references import FOREIGN_KEY_VIOLATIONS, unknown_user

# all that asyncpg raises for a server or a connection that fails; they have no common base
FAILURES: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
DOWN: Final = "the database is down or cannot be reached"
SLOW: Final = "the database did not answer in time"
FULL: Final = "every connection to the database is in use"
STANDBY: Final = "no server of DATABASE_URL takes writes at the moment: it is a replica, or read-only"
_NO_CONNECTION: Final = "the database takes no more connections; see Connections in docs/stores.md"
_READ_ONLY: Final = "the database is read-only at the moment"
_BUSY: Final = "the database gave up this statement for another one; nothing was changed"
_LOGIN: Final = "the database refuses the user, the password or the database's name of DATABASE_URL"
_CERTIFICATE: Final = (
    "the database's certificate is not trusted or has another name: set sslrootcert in DATABASE_URL to its authority"
)
_NO_TLS: Final = "the database offers no TLS, which DATABASE_URL requires; see sslmode in docs/stores.md"
_PRIVILEGE: Final = "the user of DATABASE_URL may not use oauth_tokens: grant it the role token_vault"
_SCHEMA: Final = (
    "oauth_tokens lacks a column, a constraint or a function that the vault needs; run `token-vault migrate`"
)
_VALUE: Final = "PostgreSQL cannot hold a value of this row; nothing was written"
_STATEMENT_LOST: Final = "a pooler has lost a prepared statement; nothing was changed"

# By SQLSTATE, or by its first two characters if a whole class has one meaning. Every one listed here means that the
# statement was rolled back or never ran.
_BY_CODE: Final[dict[str, tuple[type[StoreError], str]]] = {
    "22": (StoreMisconfigured, _VALUE),  # also asyncpg's own, for a value that it cannot encode
    "23": (StoreMisconfigured, _SCHEMA),
    "25006": (StoreUnavailable, _READ_ONLY),
    "26000": (StoreUnavailable, _STATEMENT_LOST),
    "28": (StoreMisconfigured, _LOGIN),
    "3D000": (StoreMisconfigured, _LOGIN),
    "3F000": (StoreMisconfigured, _SCHEMA),
    "40": (StoreUnavailable, _BUSY),
    "40003": (StoreUnavailable, ""),  # statement_completion_unknown, see below
    "42": (StoreMisconfigured, _SCHEMA),
    "42501": (StoreMisconfigured, _PRIVILEGE),
    "42P05": (StoreUnavailable, _STATEMENT_LOST),
    "53": (StoreUnavailable, "the database has no room or no connection left; nothing was changed"),
    "55P03": (StoreTimeout, SLOW),
    "57014": (StoreTimeout, SLOW),
}
_UNKNOWN_COMPLETION: Final = "40003"
_TOO_MANY_CONNECTIONS: Final = "53300"
# a session with one of these does not serve: a demoted server, or a pooler that an earlier check did not see
STALE_SESSION: Final = frozenset({"25006", "26000", "42P05"})


def meaning(error: BaseException) -> Exception:
    """Return the vault's error for an error of a statement, or `UnknownOutcomeError` if it may have been committed."""
    if isinstance(error, asyncpg.PostgresError):
        code = str(error.sqlstate)
        if code in FOREIGN_KEY_VIOLATIONS:
            return unknown_user()
        error_class, detail = _BY_CODE.get(code) or _BY_CODE.get(code[:2]) or (None, "")
        if error_class is not None and code != _UNKNOWN_COMPLETION:
            return error_class(detail)
        return UnknownOutcomeError(StoreUnavailable(DOWN))
    return UnknownOutcomeError(StoreUnavailable(DOWN))


def meaning_at_connect(error: BaseException) -> StoreError:
    """Return the vault's error for an attempt to connect. No statement was sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreMisconfigured(_CERTIFICATE)
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error):
        return StoreMisconfigured(_NO_TLS)
    if isinstance(error, asyncpg.PostgresError):
        code = str(error.sqlstate)
        if code[:2] == "28" or code == "3D000":
            return StoreMisconfigured(_LOGIN)
        if code == _TOO_MANY_CONNECTIONS:
            return StoreUnavailable(_NO_CONNECTION)
    return StoreUnavailable(DOWN)
