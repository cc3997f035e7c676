"""Values that labels may have. The sets are closed, so callers cannot create series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from app import errors
from app.tokens.events import CANCELLED, NOT_REFRESHABLE, SUCCESS, SUPERSEDED

OTHER: Final = "other"
NONE: Final = "none"
UNMATCHED: Final = "unmatched"
SHED: Final = "shed"  # refused by load shedding before routing
PROVIDERS: Final = frozenset({"canvas", "google", "microsoft", "apple", "notion"})
METHODS: Final = frozenset({"GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"})
KMS_OPERATIONS: Final = frozenset({"GenerateDataKey", "Decrypt"})
KMS_THROTTLES: Final = frozenset(
    {
        "LimitExceededException",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
KMS_OUTCOMES: Final = KMS_THROTTLES | {
    SUCCESS,
    "AccessDeniedException",
    "ConnectTimeoutError",
    "DependencyTimeoutException",
    "DisabledException",
    "EndpointConnectionError",
    "ExpiredTokenException",
    "IncorrectKeyException",
    "InvalidCiphertextException",
    "KMSInternalException",
    "KMSInvalidStateException",
    "KeyUnavailableException",
    "NoCredentialsError",
    "NotFoundException",
    "ReadTimeoutError",
    "UnrecognizedClientException",
}


def _codes(error: type[errors.VaultError]) -> Iterator[str]:
    yield error.code
    for subclass in error.__subclasses__():
        yield from _codes(subclass)


CODES: Final = frozenset(_codes(errors.VaultError))
OUTCOMES: Final = CODES | {SUCCESS, CANCELLED, SUPERSEDED, NOT_REFRESHABLE}
# outcomes that depend on the provider's tokens; any other has the same cause for every provider
PROVIDER_OUTCOMES: Final = frozenset(
    {
        SUCCESS,
        errors.TokenNotFound.code,
        errors.TokenInactive.code,
        errors.VersionConflict.code,
        errors.ProviderUnavailable.code,
        errors.ProviderMisconfigured.code,
    }
)
# series from the start: an alert sees an increase, not a new series
DECRYPTION_FAILURES: Final = tuple(
    error.code
    for error in (
        errors.IntegrityError,
        errors.MalformedCiphertext,
        errors.KeyDenied,
        errors.KeyUnavailable,
    )
)
STORE_ERRORS: Final = tuple(
    error.code for error in (errors.StoreUnavailable, errors.StoreTimeout, errors.StoreMisconfigured)
)


def one_of(allowed: frozenset[str] | tuple[str, ...], value: str) -> str:
    """Return the value if it is allowed, else `other`."""
    return value if value in allowed else OTHER
