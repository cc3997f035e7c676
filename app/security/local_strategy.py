"""Local encryption: AES-256-GCM under a key for each user, derived from the master key."""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache
from typing import Final

from app.errors import IntegrityError, MalformedCiphertext
from app.security import base64url
from app.security.aead import COMMITMENT_BYTES, NONCE_BYTES, TAG_BYTES, Box, CommittingAead
from app.security.context import LABEL, TokenContext, length_prefixed
from app.security.formats import Family
from app.security.keyring import Keyring
from app.security.strategy import KeyNotCached, Sealed, SealingKey, require_claim

CACHED_USER_KEYS = 4_096
PBKDF2_ITERATIONS = 600_000  # OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256
_FAMILY: Final = b"local/1"
_FORMAT: Final = b"\x01"
_OVERHEAD_BYTES: Final = len(_FORMAT) + COMMITMENT_BYTES + NONCE_BYTES + TAG_BYTES


class LocalStrategy:
    """The bound local format: `v{key version}:` and unpadded base64url of

    ====== =========== ==========================
    offset bytes       content
    ====== =========== ==========================
    0      1           format, `0x01`
    1      32          commitment to the key
    33     12          nonce, random
    45     n           ciphertext
    45 + n 16          tag
    ====== =========== ==========================

    PBKDF2 turns the master key into a root once per process and version; HKDF derives each user's key from it in
    microseconds.
    """

    family: Final = Family.LOCAL

    def __init__(self, *, keyring: Keyring) -> None:
        self._keyring = keyring
        self.scheme: Final = f"local:v{keyring.primary_version}"
        self._roots: dict[int, bytes] = {}
        self._deriving = threading.Lock()
        # saves HKDF, a third of a read; an attacker who reads these keys from memory can read the root as well
        self._user_key = lru_cache(maxsize=CACHED_USER_KEYS)(self._derive_user_key)

    def derive_root(self) -> None:
        """Derive the root of the primary version ahead of its first use."""
        version = self._keyring.primary_version
        self._derive_root(version, self._keyring.key(version))

    def seal(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        version = self._keyring.primary_version
        name = f"v{version}"
        box = self._aead(version, context, wait=wait).seal(plaintext.encode(), context.aad(_FAMILY, name.encode()))
        payload = b"".join((_FORMAT, box.commitment, box.nonce, box.ciphertext))
        return Sealed(
            ciphertext=f"{name}:{base64url.encode(payload)}",
            scheme=self.scheme,
            method=f"aes256-gcm-{name}",
        )

    def reserve(self, context: TokenContext, *, wait: bool = True) -> SealingKey:
        self._aead(self._keyring.primary_version, context, wait=wait)
        return self  # the root that it has derived stays for as long as the process

    def open(self, ciphertext: str, context: TokenContext, *, claimed: str | None = None, wait: bool = True) -> str:
        name, _, encoded = ciphertext.partition(":")
        require_claim(claimed, f"local:{name}")
        payload = base64url.decode(encoded)
        if len(payload) < _OVERHEAD_BYTES:
            raise MalformedCiphertext("the ciphertext is shorter than its fixed parts")
        if payload[:1] != _FORMAT:
            raise MalformedCiphertext("the ciphertext has an unknown format byte")
        nonce_at = 1 + COMMITMENT_BYTES
        box = Box(payload[1:nonce_at], payload[nonce_at : nonce_at + NONCE_BYTES], payload[nonce_at + NONCE_BYTES :])
        plaintext = self._aead(int(name[1:]), context, wait=wait).open(box, context.aad(_FAMILY, name.encode()))
        try:
            return plaintext.decode()
        except UnicodeDecodeError:
            raise IntegrityError("the plaintext is not text") from None

    def _aead(self, version: int, context: TokenContext, *, wait: bool) -> CommittingAead:
        # first, because MIN_KEY_VERSION also refuses versions whose root is derived already
        master_key = self._keyring.key(version)
        if version not in self._roots:
            if not wait:
                raise KeyNotCached((_FAMILY, version))  # not `derived`: once per version, so it skips the queue
            self._derive_root(version, master_key)
        return self._user_key(version, context.user_id)

    def _derive_user_key(self, version: int, user_id: str) -> CommittingAead:
        return CommittingAead(self._roots[version], info=length_prefixed(LABEL, _FAMILY, user_id.encode()))

    def _derive_root(self, version: int, master_key: bytes) -> None:
        with self._deriving:  # concurrent first callers derive it once
            if version not in self._roots:
                salt = b"/".join((LABEL, b"root", f"v{version}".encode()))
                self._roots[version] = hashlib.pbkdf2_hmac("sha256", master_key, salt, PBKDF2_ITERATIONS)
