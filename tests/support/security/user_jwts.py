"""Users' JWTs with the claims of Supabase Auth's, and the keys of an issuer."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER: Final = "https://abcdefgh.supabase.co/auth/v1"
AUDIENCE: Final = "authenticated"
SECRET: Final = "super-secret-jwt-token-with-at-least-32-characters-long"
ASYMMETRIC: Final = ("ES256", "RS256", "EdDSA")


def claims_of(user_id: str, **changes: Any) -> dict[str, Any]:
    """Return the claims of a new JWT; `changes` replace some, and remove those that are `None`."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user_id,
        "exp": now + 3600,
        "iat": now,
        "email": "student@example.edu",
        "role": "authenticated",
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": now}],
        "session_id": str(uuid4()),
        "is_anonymous": False,
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {},
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key of an issuer."""

    algorithm: str
    private: Any
    key_id: str = field(default_factory=lambda: str(uuid4()))

    def jwt(self, user_id: str, *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        return self.sign(claims_of(user_id, **changes), headers)

    def sign(self, claims: dict[str, Any], headers: dict[str, Any] | None = None) -> str:
        named = {"kid": self.key_id, **(headers or {})}
        return jwt.encode(claims, self.private, self.algorithm, headers=named)

    def public(self) -> dict[str, Any]:
        """Return the JSON Web Key."""
        described: Any = {"ES256": ECAlgorithm, "RS256": RSAAlgorithm, "EdDSA": OKPAlgorithm}[self.algorithm]
        return {
            **json.loads(described.to_jwk(self.private.public_key())),
            "kid": self.key_id,
            "use": "sig",
            "alg": self.algorithm,
            "key_ops": ["verify"],
        }


def new_signing_key(algorithm: str = "ES256", *, bits: int = 2048) -> SigningKey:
    if algorithm == "ES256":
        return SigningKey(algorithm, ec.generate_private_key(ec.SECP256R1()))
    if algorithm == "RS256":
        return SigningKey(algorithm, rsa.generate_private_key(public_exponent=65537, key_size=bits))
    return SigningKey(algorithm, ed25519.Ed25519PrivateKey.generate())


def secret_jwt(user_id: str, secret: str = SECRET, **changes: Any) -> str:
    """Return a JWT under the issuer's secret."""
    return jwt.encode(claims_of(user_id, **changes), secret, "HS256")


def key_set(*keys: SigningKey | dict[str, Any]) -> bytes:
    """Return the document that an issuer publishes."""
    members = [key.public() if isinstance(key, SigningKey) else key for key in keys]
    return json.dumps({"keys": members}).encode()
