"""Client of the PulsePlan token vault.

    from token_vault_client import VaultClient

    with VaultClient("https://vault.internal", service_key) as vault:
        token = vault.reveal(user_id, "google")
        print(token.access_token, token.expires_at)

`AsyncVaultClient` has the same methods as coroutines.
"""

from token_vault_client.auth import AsyncVaultAuth, VaultAuth, WrongHostError
from token_vault_client.cache import TokenCache
from token_vault_client.client import AsyncVaultClient, VaultClient
from token_vault_client.errors import (
    AnswerTooLarge,
    AuditUnavailable,
    BodyTooLarge,
    Forbidden,
    IntegrityFailure,
    InternalError,
    InvalidRequest,
    KeyDenied,
    KeyUnavailable,
    MalformedBody,
    MalformedCiphertext,
    Overloaded,
    ProviderMisconfigured,
    ProviderUnavailable,
    RateLimited,
    RefreshInProgress,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    TokenInactive,
    TokenNotFound,
    TokenReferenced,
    Unauthenticated,
    UnexpectedAnswer,
    Unreachable,
    VaultError,
    VersionConflict,
)
from token_vault_client.models import (
    EncryptionStatus,
    Erased,
    IssuedToken,
    Readiness,
    Receipt,
    RevealedToken,
    Token,
    TokenId,
    TokenList,
    UnreadableToken,
)
from token_vault_client.operations import UNSET
from token_vault_client.retries import RetryPolicy

__all__ = [
    "UNSET",
    "AnswerTooLarge",
    "AsyncVaultAuth",
    "AsyncVaultClient",
    "AuditUnavailable",
    "BodyTooLarge",
    "EncryptionStatus",
    "Erased",
    "Forbidden",
    "IntegrityFailure",
    "InternalError",
    "InvalidRequest",
    "IssuedToken",
    "KeyDenied",
    "KeyUnavailable",
    "MalformedBody",
    "MalformedCiphertext",
    "Overloaded",
    "ProviderMisconfigured",
    "ProviderUnavailable",
    "RateLimited",
    "Readiness",
    "Receipt",
    "RefreshInProgress",
    "RetryPolicy",
    "RevealedToken",
    "StoreMisconfigured",
    "StoreTimeout",
    "StoreUnavailable",
    "Token",
    "TokenCache",
    "TokenId",
    "TokenInactive",
    "TokenList",
    "TokenNotFound",
    "TokenReferenced",
    "Unauthenticated",
    "UnexpectedAnswer",
    "Unreachable",
    "UnreadableToken",
    "VaultAuth",
    "VaultClient",
    "VaultError",
    "VersionConflict",
    "WrongHostError",
]
