"""Everything that can go wrong, as the rest of the program sees it.

A library's own exception becomes one of these at that library's boundary and nowhere else. `str(error)` is shown to
callers and written to logs, so it never holds a token, a key, a row or a third party's text. Status codes are HTTP's
business and stand in `app.api.problems`.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Self


class VaultError(Exception):
    """Base of every error that the vault raises on purpose.

    `code` is the stable name that callers dispatch on. `retryable` is true where the same call may succeed later
    without anybody changing it; those errors say after how many seconds to try.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.detail = detail
        self.recorded = False  # whether the vault has left a record of it
        self.retry_after_seconds = retry_after_seconds

    def copy(self) -> Self:
        """Return an equal error to raise elsewhere; a shared one would collect the traceback of every caller."""
        duplicate = copy.copy(self)
        duplicate.recorded = False
        return duplicate


class InternalError(VaultError):
    """A defect of the vault itself."""


class InvalidRequest(VaultError):
    """Well-formed, but breaks a rule. `problems` maps a field of the request to what is wrong with it."""

    code = "invalid_request"

    def __init__(self, detail: str, *, problems: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.problems = problems

    @classmethod
    def of_field(cls, field: str, detail: str) -> Self:
        """Return the error of one field whose problem is the whole of it."""
        return cls(detail, problems=((field, detail),))


class MalformedBody(VaultError):
    """The body is not the strict JSON that the vault accepts."""

    code = "malformed_body"


class BodyTooLarge(VaultError):
    code = "body_too_large"


class Unauthenticated(VaultError):
    """No service key, or none that is known and alive."""

    code = "unauthenticated"


class Forbidden(VaultError):
    """A known caller without the scope or the provider that this call needs."""

    code = "forbidden"


class AuditUnavailable(VaultError):
    """The attempt could not be recorded, so no secret leaves. A write may have happened; repeating it is safe."""

    code = "audit_unavailable"
    retryable = True


class RateLimited(VaultError):
    """The service asks for more than its share."""

    code = "rate_limited"
    retryable = True


class Overloaded(VaultError):
    """The vault has more to do than it can do in time. Nothing was done."""

    code = "overloaded"
    retryable = True


class TokenNotFound(VaultError):
    code = "token_not_found"


class TokenInactive(VaultError):
    """The token's status is not `ok`, so its secret stays where it is."""

    code = "token_inactive"


class VersionConflict(VaultError):
    """The condition of the call does not hold: someone else wrote first, or the token exists already."""

    code = "version_conflict"


class StoreError(VaultError):
    """Base of what the token store can do to a call."""


class StoreUnavailable(StoreError):
    """The store is down, or the outcome of a write is not known and could not be read back."""

    code = "store_unavailable"
    retryable = True


class StoreTimeout(StoreError):
    """The store did not answer in time. A write may or may not have happened."""

    code = "store_timeout"
    retryable = True


class StoreMisconfigured(StoreError):
    """Bad credentials or a schema that is not the vault's: no retry helps, an operator does."""

    code = "store_misconfigured"


class EncryptionError(VaultError):
    """Base of what can go wrong between a plaintext and its ciphertext."""


class KeyUnavailable(EncryptionError):
    """The key service throttles, times out or is down."""

    code = "key_unavailable"
    retryable = True


class KeyDenied(EncryptionError):
    """The key is missing, refused by policy, disabled or not ours to use."""

    code = "key_denied"


class CredentialsDenied(KeyDenied):
    """Who asks the key service cannot say who they are, or not any more; it is about no key and no ciphertext."""


class IntegrityError(EncryptionError):
    """The ciphertext does not authenticate under this key in this context."""

    code = "integrity"


class MalformedCiphertext(EncryptionError):
    """The text has the shape of no known ciphertext format."""

    code = "malformed_ciphertext"
