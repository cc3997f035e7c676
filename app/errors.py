"""The vault's errors.

The exceptions of a library are translated into these where the library is called. `str(error)` is shown to callers and
logged, so it never holds a token, a key, a row or a third party's text. `app.api.problems` maps errors to statuses.
"""

from __future__ import annotations

from typing import ClassVar, Self


class VaultError(Exception):
    """Base of all errors that the vault raises on purpose.

    `code` is the stable name that callers dispatch on. `retryable` is true if the same call may succeed later, after
    `retry_after_seconds`.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.detail = detail
        self.recorded = False  # whether an audit event holds it
        self.receipt: object | None = None  # of a revocation that was made before: an `app.tokens.deletion.Receipt`
        self.retry_after_seconds = retry_after_seconds

    def copy(self) -> Self:
        """Return an equal error to raise once more: a shared object would collect the traceback of every caller."""
        kind = type(self)
        duplicate = kind.__new__(kind, *self.args)  # without its constructor, which may take other arguments
        duplicate.__dict__.update(self.__dict__, recorded=False)
        return duplicate


class InternalError(VaultError):
    """A defect of the vault itself."""


class InvalidRequest(VaultError):
    """A well-formed request that breaks a rule. `problems` holds pairs of field and message."""

    code = "invalid_request"

    def __init__(self, detail: str, *, problems: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.problems = problems

    @classmethod
    def of_field(cls, field: str, detail: str) -> Self:
        """Return the error for a problem with a single field."""
        return cls(detail, problems=((field, detail),))


class OAuthRequestRefused(InvalidRequest):
    """A request to the token endpoint that OAuth has an error code of its own for: `error` (RFC 6749, RFC 8693)."""

    def __init__(self, detail: str, *, error: str) -> None:
        super().__init__(detail)
        self.error = error


class MalformedBody(VaultError):
    """The body is not strict JSON."""

    code = "malformed_body"


class BodyTooLarge(VaultError):
    """The body is over 64 KiB."""

    code = "body_too_large"


class AnswerTooLarge(VaultError):
    """The answer to a batch is full, so this token is not in it; or a user has too many tokens for a list."""

    code = "answer_too_large"


class Unauthenticated(VaultError):
    """The service key is missing, unknown or expired."""

    code = "unauthenticated"


class Forbidden(VaultError):
    """The service key lacks the scope, the provider or the user that the call needs."""

    code = "forbidden"


class ProviderForbidden(Forbidden):
    """The service key is limited to other providers."""


class UserJwtRefused(Forbidden):
    """The user's JWT is missing or invalid, or is another user's. `reason` names the cause for the metrics.

    `problems` holds the header and the detail, so that callers can tell it from a key that lacks a scope.
    """

    def __init__(self, detail: str, *, reason: str = "other") -> None:
        super().__init__(detail)
        self.reason = reason
        self.problems = (("x-on-behalf-of", detail),)


class AuditUnavailable(VaultError):
    """The audit event was not written, so no secret is returned. A write may have happened; repeating it is safe."""

    code = "audit_unavailable"
    retryable = True


class RateLimited(VaultError):
    """The calling service exceeds its rate or its number of concurrent requests."""

    code = "rate_limited"
    retryable = True


class Overloaded(VaultError):
    """The process has too many requests to answer this one in time. Nothing was done."""

    code = "overloaded"
    retryable = True


class TokenNotFound(VaultError):
    """The user has no such token."""

    code = "token_not_found"


class TokenInactive(VaultError):
    """The token's status is not `ok`, so its secrets are not returned."""

    code = "token_inactive"


class TokenReferenced(VaultError):
    """Another table references the row of the token, so the database does not delete it."""

    code = "token_referenced"


class VersionConflict(VaultError):
    """The precondition does not hold: the token has another version, or exists already."""

    code = "version_conflict"


class StoreError(VaultError):
    """Base of the errors of the token store."""


class StoreUnavailable(StoreError):
    """The store is down, or a write's outcome is unknown and could not be read back."""

    code = "store_unavailable"
    retryable = True


class WritesUnavailable(StoreUnavailable):
    """The store answers reads and takes no writes, for example because its disk is full."""


class StoreTimeout(StoreError):
    """The store did not answer in time. A write may or may not have happened."""

    code = "store_timeout"
    retryable = True


class StoreMisconfigured(StoreError):
    """Wrong credentials or another schema than the vault's: an operator has to act."""

    code = "store_misconfigured"


class EncryptionError(VaultError):
    """Base of the errors of encryption and decryption."""


class KeyUnavailable(EncryptionError):
    """The key service throttles, times out or is down; a key was not derived in time; or JWTs cannot be verified."""

    code = "key_unavailable"
    retryable = True


class KeyDenied(EncryptionError):
    """The key is not configured, disabled, or refused by policy."""

    code = "key_denied"


class CredentialsDenied(KeyDenied):
    """The vault's credentials for the key service are missing or expired; says nothing about a key or a ciphertext."""


class IntegrityError(EncryptionError):
    """The ciphertext does not authenticate under this key in this context."""

    code = "integrity"


class MalformedCiphertext(EncryptionError):
    """The text is of no known ciphertext format."""

    code = "malformed_ciphertext"


class ProviderError(VaultError):
    """Base of the errors of OAuth providers. None of them holds any text of a provider's answer."""


class ProviderUnavailable(ProviderError):
    """The provider is down, throttles, or answers with nothing usable.

    `sent` is whether the request may have reached the provider, and `may_be_spent` whether the provider may also have
    used up the refresh token or the code: it is false after an answer that proves a refusal, such as 429.
    `provider_pause_seconds` is the provider's own Retry-After, bounded; `None` without one.
    """

    code = "provider_unavailable"
    retryable = True

    def __init__(
        self,
        detail: str,
        *,
        sent: bool = False,
        may_be_spent: bool | None = None,
        provider_pause_seconds: int | None = None,
    ) -> None:
        super().__init__(detail, retry_after_seconds=provider_pause_seconds or 1)
        self.sent = sent
        self.may_be_spent = sent if may_be_spent is None else may_be_spent
        self.provider_pause_seconds = provider_pause_seconds


class ProviderMisconfigured(ProviderError):
    """The provider refuses the vault's client, or the configuration permits no request. Says nothing about a token.

    `concerns_provider` is false if the cause may lie in one token alone, such as its base URL or its scopes.
    """

    code = "provider_misconfigured"

    def __init__(self, detail: str, *, concerns_provider: bool = True) -> None:
        super().__init__(detail)
        self.concerns_provider = concerns_provider


class RefreshInProgress(ProviderError):
    """Another refresh of the token is in progress, and has not ended in time."""

    code = "refresh_in_progress"
    retryable = True


class GrantRejected(TokenInactive):
    """The provider refuses the refresh token or the code: the user must sign in again.

    `reason` is the provider's error code, one of those that its entry in the registry names.
    """

    def __init__(self, detail: str, *, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class RevocationUnsupported(InvalidRequest):
    """The provider cannot revoke a token of this kind."""
