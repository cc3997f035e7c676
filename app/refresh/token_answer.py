"""The meaning of a token endpoint's answer (RFC 6749, sections 5.1 and 5.2).

The parsing is lenient where strictness would lose a token that the provider has just replaced: an unusable lifetime or
scope counts as left out. No text of an answer is quoted, logged or compared, except error codes, with known ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pydantic import SecretStr

from app.errors import GrantRejected, ProviderMisconfigured, ProviderUnavailable
from app.tokens.models import MAXIMUM_TOKEN_CHARACTERS

if TYPE_CHECKING:  # imports aiohttp, which a vault without providers does not need
    from app.refresh.provider_connection import ProviderAnswer

LONGEST_LIFETIME_SECONDS: Final = 10 * 366 * 86_400  # a longer one is no lifetime, but "never"
LONGEST_PAUSE_SECONDS: Final = 3600
_MAXIMUM_SCOPES: Final = 200
_MAXIMUM_SCOPE_CHARACTERS: Final = 512
_MAXIMUM_DIGITS: Final = 15
# members that hold the lifetime of the refresh token: a draft of the IETF, Keycloak, Intuit
_REFRESH_LIFETIMES: Final = ("refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in")
_OF_CLIENT: Final = frozenset({"invalid_client"})
_OF_CONFIGURATION: Final = frozenset(
    {"unauthorized_client", "invalid_scope", "unsupported_grant_type", "invalid_request"}
)
_TRANSIENT: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
_WRONG_URL: Final = frozenset({404, 405, 410, 415})


class ClientRefusedError(Exception):
    """The provider refuses the client authentication, so it has not looked at the grant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTokens:
    """The answer of a token endpoint. What the answer leaves out is `None`: an omitted refresh token stays valid."""

    access_token: SecretStr
    refresh_token: SecretStr | None = None
    expires_in_seconds: int | None = None
    refresh_token_expires_in_seconds: int | None = None
    scopes: tuple[str, ...] | None = None


def parse_tokens(name: str, answer: ProviderAnswer, *, reauth_errors: frozenset[str]) -> ProviderTokens:
    """Return the tokens of an answer.

    Raises `ClientRefusedError`, `GrantRejected` for one of `reauth_errors`, `ProviderMisconfigured` or
    `ProviderUnavailable`.
    """
    members = _members(answer)
    if not 200 <= answer.status < 300 or members is None or not isinstance(members.get("access_token"), str):  # noqa: PLR2004  2xx
        raise_for_error(name, answer, members, reauth_errors=reauth_errors)
    access_token, refresh_token = members["access_token"], members.get("refresh_token")
    if not _is_token(access_token) or not (refresh_token is None or refresh_token == "" or _is_token(refresh_token)):
        raise ProviderUnavailable(f"{name} answers with a token that cannot be stored", sent=True)
    return ProviderTokens(
        access_token=SecretStr(access_token),
        refresh_token=SecretStr(refresh_token) if refresh_token else None,
        expires_in_seconds=lifetime_seconds(members.get("expires_in")),
        refresh_token_expires_in_seconds=next(
            (seconds for one in _REFRESH_LIFETIMES if (seconds := lifetime_seconds(members.get(one))) is not None), None
        ),
        scopes=scope_values(members.get("scope")),
    )


def require_success(name: str, answer: ProviderAnswer) -> None:
    """Return if a revocation has succeeded; raises as `parse_tokens` does.

    The body does not count (RFC 7009, section 2.2), but a page of HTML comes from something else than the endpoint.
    """
    if not 200 <= answer.status < 300:  # noqa: PLR2004  2xx
        raise_for_error(name, answer, _members(answer), reauth_errors=frozenset())
    if answer.body.lstrip().startswith(b"<"):
        raise ProviderUnavailable(f"{name} answers with a page instead of a revocation", sent=True)


def error_code(answer: ProviderAnswer) -> str | None:
    """Return the error code of an answer, for comparisons with known ones."""
    members = _members(answer)
    code = None if members is None else members.get("error")
    return code if isinstance(code, str) else None


def raise_for_error(
    name: str, answer: ProviderAnswer, members: dict[str, Any] | None, *, reauth_errors: frozenset[str]
) -> NoReturn:
    """Raise the error that an answer without tokens means."""
    status = answer.status
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise ProviderUnavailable(
            f"{name} throttles", sent=True, may_be_spent=False, provider_pause_seconds=_pause(answer)
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ProviderUnavailable(
            f"{name} answers with status {status}", sent=True, provider_pause_seconds=_pause(answer)
        )
    if 300 <= status < 400:  # noqa: PLR2004  3xx
        raise ProviderUnavailable(f"{name} answers with a redirect, which is not followed", sent=True)
    code = None if members is None else members.get("error")
    if isinstance(code, str):
        _raise_for_code(name, code, answer, reauth_errors)
    if status == HTTPStatus.UNAUTHORIZED:
        raise ClientRefusedError
    if status in _WRONG_URL:
        raise ProviderMisconfigured(f"{name} answers with status {status}: its URL is wrong")
    if 400 <= status < 500:  # noqa: PLR2004  4xx
        raise ProviderUnavailable(
            f"{name} answers with status {status} and no error code", sent=True, provider_pause_seconds=_pause(answer)
        )
    raise ProviderUnavailable(f"{name} answers with something that is not a token", sent=True)


def _raise_for_code(name: str, code: str, answer: ProviderAnswer, reauth_errors: frozenset[str]) -> None:
    if code in reauth_errors:
        raise GrantRejected(f"{name} refuses the grant: the user must sign in again", reason=code)
    if code in _OF_CLIENT:
        raise ClientRefusedError
    if code in _TRANSIENT:
        raise ProviderUnavailable(
            f"{name} is unavailable ({code})",
            sent=True,
            may_be_spent=code == "server_error",
            provider_pause_seconds=_pause(answer),
        )
    known = code if code in _OF_CONFIGURATION else "an error code that the vault does not know"
    # a scope is the token's, and an unknown error may be: neither says that the provider refuses every token
    raise ProviderMisconfigured(
        f"{name} refuses the vault's request: {known}", concerns_provider=code in {None, "unauthorized_client"}
    )


def _members(answer: ProviderAnswer) -> dict[str, Any] | None:
    """Return the JSON object of the body; numbers that no member needs, such as NaN, become `None`."""
    try:
        members = json.loads(
            answer.body,
            parse_constant=lambda _: None,
            parse_int=lambda text: int(text) if len(text) <= _MAXIMUM_DIGITS else None,
        )
    except (ValueError, RecursionError):
        return None
    return members if isinstance(members, dict) else None


def _is_token(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAXIMUM_TOKEN_CHARACTERS and value.isprintable()


def lifetime_seconds(value: object) -> int | None:
    """Return a lifetime, also from text or a fraction; `None` for zero, negative, endless and unreadable ones."""
    if isinstance(value, str) and len(value) <= _MAXIMUM_DIGITS:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 1 <= value <= LONGEST_LIFETIME_SECONDS else None


def scope_values(value: object) -> tuple[str, ...] | None:
    """Return the scopes of a text or a list; `None` if there are none, or some that cannot be stored."""
    scopes = value.split() if isinstance(value, str) else value
    if not isinstance(scopes, list) or not 1 <= len(scopes) <= _MAXIMUM_SCOPES:
        return None
    return tuple(scopes) if all(map(_is_scope, scopes)) else None


def _is_scope(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= _MAXIMUM_SCOPE_CHARACTERS and value.isprintable()


def _pause(answer: ProviderAnswer) -> int | None:
    """Return the seconds of Retry-After (RFC 9110, section 10.2.3), from 1 to an hour; `None` without a usable one."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:_MAXIMUM_DIGITS])
    else:
        try:
            when = parsedate_to_datetime(text)
            seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError, TypeError, IndexError):
            return None
    return int(min(max(seconds, 1), LONGEST_PAUSE_SECONDS))
