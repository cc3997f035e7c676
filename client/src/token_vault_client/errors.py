"""The vault's errors: one class for each `code` of a problem, and two for answers that are no problem.

No error holds a token, a service key or a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final


class VaultError(Exception):
    """An error of the vault, also one whose code this version of the client does not know.

    `retry_after_seconds` is how long the vault asks to wait. `outcome_unknown` is true if a write may have happened.
    `field_errors` names the fields of an invalid request. `problem` holds all members of the answer.
    """

    code: ClassVar[str] = ""

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int | None = None,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        request_id: str | None = None,
        outcome_unknown: bool = False,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code_received = code or self.code
        self.detail = detail
        self.status = status
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id
        self.outcome_unknown = outcome_unknown
        self.problem: Mapping[str, Any] = problem or {}

    def __str__(self) -> str:
        return f"{self.code_received}: {self.detail}"

    @property
    def field_errors(self) -> dict[str, str]:
        return {one["field"]: one["message"] for one in self.problem.get("errors") or []}


class InvalidRequest(VaultError):
    code = "invalid_request"


class MalformedBody(VaultError):
    code = "malformed_body"


class BodyTooLarge(VaultError):
    code = "body_too_large"


class AnswerTooLarge(VaultError):
    code = "answer_too_large"


class Unauthenticated(VaultError):
    """The service key is missing, unknown or expired."""

    code = "unauthenticated"


class Forbidden(VaultError):
    """The service key, or the user's JWT, does not permit the call."""

    code = "forbidden"


class AuditUnavailable(VaultError):
    code = "audit_unavailable"


class RateLimited(VaultError):
    """The service has reached its limit. Nothing was done."""

    code = "rate_limited"


class Overloaded(VaultError):
    """The vault has too many requests. Nothing was done."""

    code = "overloaded"


class TokenNotFound(VaultError):
    """The user has no such token: ask the user to connect the provider."""

    code = "token_not_found"


class TokenInactive(VaultError):
    """The token no longer serves: ask the user to connect the provider again."""

    code = "token_inactive"


class TokenReferenced(VaultError):
    """Another table references the token's row."""

    code = "token_referenced"


class VersionConflict(VaultError):
    """The token has another version than `if_match`, or exists already."""

    code = "version_conflict"


class StoreUnavailable(VaultError):
    code = "store_unavailable"


class StoreTimeout(VaultError):
    code = "store_timeout"


class StoreMisconfigured(VaultError):
    code = "store_misconfigured"


class KeyUnavailable(VaultError):
    code = "key_unavailable"


class KeyDenied(VaultError):
    code = "key_denied"


class IntegrityFailure(VaultError):
    """The stored row was altered, or the master key is wrong."""

    code = "integrity"


class MalformedCiphertext(VaultError):
    code = "malformed_ciphertext"


class ProviderUnavailable(VaultError):
    code = "provider_unavailable"


class ProviderMisconfigured(VaultError):
    code = "provider_misconfigured"


class RefreshInProgress(VaultError):
    code = "refresh_in_progress"


class InternalError(VaultError):
    """A defect of the vault."""

    code = "internal"


class Unreachable(VaultError):
    """The vault gave no answer: no connection, a time-out, or a connection that ended."""

    code = "unreachable"


class UnexpectedAnswer(VaultError):
    """The answer is not the vault's: a proxy's error page, or another program."""

    code = "unexpected_answer"


BY_CODE: Final[Mapping[str, type[VaultError]]] = {one.code: one for one in VaultError.__subclasses__()}


def error_of(problem: Mapping[str, Any], *, status: int | None = None, **more: Any) -> VaultError:  # noqa: ANN401
    """Return the error of a problem document, or of an error of the token endpoint."""
    code = str(problem["code"])
    return BY_CODE.get(code, VaultError)(
        str(problem.get("detail") or problem.get("error_description") or ""),
        code=code,
        status=status if status is not None else problem.get("status"),
        retryable=bool(problem.get("retryable")) or more.get("retry_after_seconds") is not None,
        request_id=problem.get("request_id"),
        problem=problem,
        **more,
    )
