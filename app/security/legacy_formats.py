"""PulsePlan's local formats, which are decrypted and never written."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Final

from app.errors import IntegrityError, MalformedCiphertext
from app.security.aead import KEY_BYTES, TAG_BYTES, open_without_commitment
from app.security.context import TokenContext
from app.security.formats import Family
from app.security.keyring import Keyring
from app.security.strategy import KeyNotCached, require_claim

PBKDF2_ITERATIONS = 100_000
CACHED_KEYS: Final = 1_024
_IV_BYTES: Final = 16
_PARTS_WITH_VERSION: Final = 4


class PulsePlanLocalReader:
    """`v{n}:{iv}:{tag}:{ciphertext}`, and `{iv}:{tag}:{ciphertext}` for key version 1; all fields in hex.

    AES-256-GCM with a 16-byte nonce, which this format calls IV, and without AAD: only the key binds such a ciphertext
    to its user. The key is PBKDF2-HMAC-SHA256 of the master key, salt `pulseplan:user:{user_id}:v{n}`, 100 000
    iterations, about 20 ms. The last 1 024 keys stay in memory.
    """

    family: Final = Family.PULSEPLAN_LOCAL

    def __init__(self, *, keyring: Keyring) -> None:
        self._keyring = keyring
        self._keys: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, ciphertext: str, context: TokenContext, *, claimed: str | None = None, wait: bool = True) -> str:
        require_claim(claimed, None)
        version, iv_hex, tag_hex, body_hex = _split(ciphertext)
        try:
            iv, tag, body = bytes.fromhex(iv_hex), bytes.fromhex(tag_hex), bytes.fromhex(body_hex)
        except ValueError:
            raise MalformedCiphertext("the ciphertext is not hex") from None
        if len(iv) != _IV_BYTES or len(tag) != TAG_BYTES:
            raise MalformedCiphertext("the ciphertext's IV and tag are not 16 bytes each")
        key = self._key(version, context.user_id, wait=wait)
        plaintext = open_without_commitment(key, nonce=iv, ciphertext=body + tag)
        try:
            return plaintext.decode()
        except UnicodeDecodeError:
            raise IntegrityError("the plaintext is not text") from None

    def _key(self, version: int, user_id: str, *, wait: bool) -> bytes:
        master_key = self._keyring.key(version)
        name = (version, user_id)
        with self._lock:
            key = self._keys.get(name)
            if key is not None:
                self._keys.move_to_end(name)
                return key
        if not wait:
            raise KeyNotCached(name, derived=True)
        salt = f"pulseplan:user:{user_id}:v{version}".encode()
        key = hashlib.pbkdf2_hmac("sha256", master_key, salt, PBKDF2_ITERATIONS, KEY_BYTES)
        with self._lock:
            self._keys[name] = key
            while len(self._keys) > CACHED_KEYS:
                self._keys.popitem(last=False)
        return key


def _split(ciphertext: str) -> tuple[int, str, str, str]:
    parts = ciphertext.split(":")
    version = int(parts[0][1:]) if len(parts) == _PARTS_WITH_VERSION else 1
    iv, tag, body = parts[-3:]
    return version, iv, tag, body
