"""The KMS packages that PulsePlan wrote before the vault. They are read, and never written again."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Final

from app.errors import ContextMismatch, IntegrityError, MalformedCiphertext
from app.security.context import TokenContext
from app.security.formats import Family
from app.security.kms.data_key_cache import SingleFlight, fingerprint
from app.security.kms.package import MAXIMUM_WRAPPED_BYTES
from app.security.strategy import KeyNotCached

if TYPE_CHECKING:
    from app.security.kms.client import KmsClient


class PulsePlanKmsReader:
    """JSON with `ciphertext` (base64 of a KMS Encrypt blob), `encryption_context` and `algorithm` `KMS`.

    KMS holds the token itself and not a data key, so each read is a request. The stored context must be the one that
    is expected here, and it is the expected one that KMS gets.
    """

    family: Final = Family.PULSEPLAN_KMS

    def __init__(self, *, kms: KmsClient) -> None:
        self._kms = kms
        self._decrypting: SingleFlight[bytes] = SingleFlight()

    def scheme_of(self, ciphertext: str) -> str:  # noqa: ARG002  the package names its key only in passing
        return str(self.family)

    def open(self, ciphertext: str, context: TokenContext, *, wait: bool = True) -> str:
        try:
            package = json.loads(ciphertext.removeprefix("kms:"))
        except (ValueError, RecursionError):
            package = None
        if not isinstance(package, dict):
            raise MalformedCiphertext("the KMS package is not a JSON object")
        blob = package.get("ciphertext")
        try:
            decoded = base64.b64decode(blob, validate=True) if isinstance(blob, str) else b""
        except (binascii.Error, ValueError):
            decoded = b""
        if not 1 <= len(decoded) <= MAXIMUM_WRAPPED_BYTES:
            raise MalformedCiphertext("the KMS package holds no ciphertext")
        if package.get("encryption_context") != context.encryption_context():
            raise ContextMismatch("the KMS package was made for another user or purpose")
        if not wait:
            raise KeyNotCached(None)
        name = fingerprint(decoded, context)
        try:
            # readers of one token ask KMS together; nothing is kept, for here KMS gives the token itself
            return self._decrypting.run(name, lambda: self._decrypt(decoded, context, package.get("key_id"))).decode()
        except UnicodeDecodeError:
            raise IntegrityError("the plaintext is not text") from None

    def _decrypt(self, blob: bytes, context: TokenContext, key_id: object) -> bytes:
        key_arn = key_id if isinstance(key_id, str) else None
        return self._kms.decrypt(blob, context.encryption_context(), key_arn=key_arn)
