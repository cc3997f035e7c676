"""`python -m tests.support.vectors`: write the vectors of the bound formats.

It implements docs/ciphertext-formats.md with `hashlib`, `hmac` and AES-GCM, and uses no code of the vault, so vault and
vectors can disagree. Nonces and data keys come from a hash of what they encrypt: the same vectors each time, which
a test compares with the committed files. Run it after a change of a format or of the cases below.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.paths import VECTORS
from tests.support.security.keys import MASTER_KEY, OTHER_MASTER_KEY

LOCAL: Final = VECTORS / "local_bound_tokens.json"
KMS: Final = VECTORS / "kms_envelopes.json"

_LABEL: Final = "pulseplan-token-vault"
_USER: Final = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
_KEY_ARN: Final = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-4333-8444-555555555555"
_CASES: Final[tuple[dict[str, Any], ...]] = (
    {
        "user_id": _USER,
        "provider": "canvas",
        "service_type": "default",
        "field": "access_token",
        "base_url": "https://canvas.example.edu",
        "plaintext": "1234~bound-format-access-token",
    },
    {
        "user_id": _USER,
        "provider": "google",
        "service_type": "calendar",
        "field": "refresh_token",
        "base_url": "",
        "plaintext": "1//0-refresh ünïcödé ✓",
    },
    {  # a row of PulsePlan's after its rewrap: the URL is what stands there
        "user_id": _USER,
        "provider": "canvas",
        "service_type": "canvas",
        "field": "access_token",
        "base_url": "canvas.example.edu/ü ",
        "plaintext": "1234~rewrapped",
    },
    {  # `encrypt_token(token, user_id)` of a script
        "user_id": "user-id-123",
        "provider": "",
        "service_type": "",
        "field": None,
        "base_url": "",
        "plaintext": "test-canvas-token-123",
    },
)


def local_vectors() -> Iterator[dict[str, Any]]:
    """Return each case under two master keys."""
    for version, master_key in ((1, MASTER_KEY), (2, OTHER_MASTER_KEY)):
        salt = f"{_LABEL}/root/v{version}".encode()
        root = hashlib.pbkdf2_hmac("sha256", base64.b64decode(master_key), salt, 600_000)
        for case in _CASES:
            key, commitment = _hkdf(root, _prefixed(_LABEL, "local/1", case["user_id"]))
            nonce = _derived("nonce", master_key, case)[:12]
            aad = _prefixed(_LABEL, "local/1", f"v{version}", *_context(case))
            body = AESGCM(key).encrypt(nonce, case["plaintext"].encode(), aad)
            ciphertext = f"v{version}:" + _base64url(b"\x01" + commitment + nonce + body)
            yield {"master_key": master_key, "key_version": version, **case, "ciphertext": ciphertext}


def kms_vectors() -> Iterator[dict[str, Any]]:
    """Return each case under a data key of its own; `wrapped` stands for what KMS would unwrap to `data_key`."""
    for case in _CASES:
        data_key, wrapped = _derived("data key", "", case), _derived("wrapped", "", case) * 5
        key, commitment = _hkdf(data_key, _prefixed(_LABEL, "kms/1"))
        name = f"{case['provider']}_kms_{case['user_id']}_{_derived('name', '', case).hex()[:16]}"
        nonce = _derived("nonce", "", case)[:12]
        body = AESGCM(key).encrypt(
            nonce, case["plaintext"].encode(), _prefixed(_LABEL, "kms/1", _KEY_ARN, name, *_context(case))
        )
        members = {
            "fmt": 1,
            "kid": _KEY_ARN,
            "id": name,
            "dk": _base64url(wrapped),
            "cm": _base64url(commitment),
            "n": _base64url(nonce),
            "ct": _base64url(body),
        }
        package = "kms:" + json.dumps(members, separators=(",", ":"))
        keys = {"key_arn": _KEY_ARN, "data_key": data_key.hex(), "wrapped": wrapped.hex()}
        yield {**keys, **case, "ciphertext": package}


def as_file(vectors: Iterator[dict[str, Any]]) -> str:
    """Return the text of a file of vectors."""
    return json.dumps(list(vectors), indent=1, ensure_ascii=False) + "\n"


def _context(case: dict[str, Any]) -> tuple[str, ...]:
    return (case["user_id"], case["provider"], case["service_type"], case["field"] or "", case["base_url"])


def _prefixed(*parts: str) -> bytes:
    return b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)


def _hkdf(secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Return the AES-256 key and the commitment: RFC 5869 without a salt, 64 bytes."""
    pseudorandom_key = hmac.digest(bytes(32), secret, "sha256")
    first = hmac.digest(pseudorandom_key, info + b"\x01", "sha256")
    return first, hmac.digest(pseudorandom_key, first + info + b"\x02", "sha256")


def _derived(purpose: str, key: str, case: dict[str, Any]) -> bytes:
    return hashlib.sha256(_prefixed(purpose, key, *_context(case), case["plaintext"])).digest()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


if __name__ == "__main__":
    LOCAL.write_text(as_file(local_vectors()))
    KMS.write_text(as_file(kms_vectors()))
