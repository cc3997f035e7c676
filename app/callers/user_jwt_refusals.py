"""Outcomes of verifying a user's JWT. Importing them does not import PyJWT, which few vaults need."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol

from app.errors import UserJwtRefused

VERIFIED: Final = "verified"


class JwtRefusal(StrEnum):
    """Reasons to refuse a user's JWT, as the metrics name them."""

    MISSING = "missing"
    REPEATED = "repeated"
    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    UNKNOWN_KEY = "unknown_key"
    SIGNATURE = "signature"
    EXPIRED = "expired"
    CLAIMS = "claims"
    OTHER_USER = "other_user"
    NOT_CONFIGURED = "not_configured"


_DETAILS: Final = {
    JwtRefusal.MISSING: "the service key acts on behalf of a user, so the call needs X-On-Behalf-Of: the user's JWT",
    JwtRefusal.REPEATED: "X-On-Behalf-Of is given more than once",
    JwtRefusal.MALFORMED: "the user's JWT is malformed",
    JwtRefusal.ALGORITHM: "the user's JWT is not signed with an algorithm that the vault accepts",
    JwtRefusal.UNKNOWN_KEY: "the user's JWT is signed with a key that the issuer does not publish",
    JwtRefusal.SIGNATURE: "the signature of the user's JWT is wrong",
    JwtRefusal.EXPIRED: "the user's JWT has expired",
    JwtRefusal.CLAIMS: "the user's JWT is of another issuer or audience, is not valid yet, or lacks exp or sub",
    JwtRefusal.OTHER_USER: "the user's JWT is another user's",
    JwtRefusal.NOT_CONFIGURED: "the vault cannot verify users' JWTs: USER_JWT_ISSUER is not set",
}


def refusal(reason: JwtRefusal) -> UserJwtRefused:
    return UserJwtRefused(_DETAILS[reason], reason=reason.value)


class UserJwtCounters(Protocol):
    """Counts verifications and downloads of the key set."""

    def user_jwt(self, outcome: str) -> None:
        """Count a JWT: `verified`, or the reason that it is refused for."""
        ...

    def key_set_download(self, outcome: str) -> None:
        """Count a download: `success` or `failure`."""
        ...
