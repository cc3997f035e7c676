"""Client authentication at a token endpoint: headers and parameters that prove which client asks."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Final
from urllib.parse import quote_plus

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import SecretStr

from app.refresh.providers import ClientAuthentication, OAuthProvider

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
APPLE_AUDIENCE: Final = "https://appleid.apple.com"
ASSERTION_SECONDS: Final = 120
_MINIMUM_RSA_BITS: Final = 2048
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class SigningKeyError(Exception):
    """What is wrong with a private key, without any of it."""


def signing_algorithm(authentication: ClientAuthentication, key: SecretStr) -> str:
    """Return the JWS algorithm of a private key in PEM, or raise `SigningKeyError`."""
    try:
        private_key = load_pem_private_key(key.get_secret_value().encode(), password=None)
    except (ValueError, TypeError):
        raise SigningKeyError("is not a private key in PEM without a password") from None
    algorithm = None
    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        algorithm = _CURVES.get(private_key.curve.name)
    elif isinstance(private_key, rsa.RSAPrivateKey) and private_key.key_size >= _MINIMUM_RSA_BITS:
        algorithm = "RS256"
    if algorithm is None:
        raise SigningKeyError("is a private key of an unsupported kind; RSA of 2048 bits or more, or P-256, is needed")
    if authentication is ClientAuthentication.APPLE and algorithm != "ES256":
        raise SigningKeyError("is not a P-256 key, which Apple needs")
    return algorithm


def authenticate(provider: OAuthProvider, secret: SecretStr, *, endpoint: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the headers and the parameters that authenticate the client with this secret at this endpoint."""
    match provider.client_auth:
        case ClientAuthentication.BASIC:  # RFC 6749, section 2.3.1: both parts are form-encoded first
            pair = f"{quote_plus(provider.client_id)}:{quote_plus(secret.get_secret_value())}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}, {}
        case ClientAuthentication.POST:
            return {}, {"client_id": provider.client_id, "client_secret": secret.get_secret_value()}
        case ClientAuthentication.PRIVATE_KEY_JWT:
            assertion = _sign(
                provider,
                secret,
                issuer=provider.client_id,
                audience=provider.audience or endpoint,
                id_=uuid.uuid4().hex,
            )
            return {}, {
                "client_id": provider.client_id,
                "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": assertion,
            }
        case ClientAuthentication.APPLE:
            audience = provider.audience or APPLE_AUDIENCE
            signed = _sign(provider, secret, issuer=provider.team_id or "", audience=audience, id_=None)
            return {}, {"client_id": provider.client_id, "client_secret": signed}


def _sign(provider: OAuthProvider, key: SecretStr, *, issuer: str, audience: str, id_: str | None) -> str:
    now = int(time.time())
    claims = {"iss": issuer, "sub": provider.client_id, "aud": audience, "iat": now, "exp": now + ASSERTION_SECONDS}
    return jwt.encode(
        claims if id_ is None else claims | {"jti": id_},
        key.get_secret_value(),
        algorithm=signing_algorithm(provider.client_auth, key),
        headers=None if provider.signing_key_id is None else {"kid": provider.signing_key_id},
    )
