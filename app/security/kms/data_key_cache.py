"""Data keys in memory, bounded in age, messages and number.

After the data-key caching of the AWS Encryption SDK, with the same limits for the same reasons:
<https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/data-key-caching.html>
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Generic, TypeVar

from app.security.aead import CommittingAead
from app.security.context import TokenContext, length_prefixed
from app.security.counters import EncryptionCounters

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")
REMEMBERED_NAMES: Final = 10_000  # the default number of cached data keys


@dataclass(slots=True)
class DataKey:
    """A data key that encrypts for `owner`, a user and a provider. Its packages begin with `head`."""

    owner: tuple[str, str]
    aead: CommittingAead = field(repr=False)
    head: str = field(repr=False)
    key_name: str
    tracking_id: str
    messages: int = 0


def fingerprint(wrapped: bytes, context: TokenContext) -> bytes:
    """Return the cache key: SHA-256 of the wrapped key and of the encryption context, which KMS would check."""
    return _fingerprint(wrapped, context.user_id)


@lru_cache(maxsize=REMEMBERED_NAMES)  # looked up for each message of a data key; the other pairs are constant
def _fingerprint(wrapped: bytes, user_id: str) -> bytes:
    return hashlib.sha256(length_prefixed(wrapped) + TokenContext(user_id).encryption_context_bytes()).digest()


class DataKeyCache:
    """Plaintext data keys: at most `size` to encrypt with and as many to decrypt with, least recently used out first.

    A key encrypts at most `max_messages` messages. No key is older than `max_age_seconds`, counted from before the
    request that brought it and not extended by use: once KMS denies a key, it stops working here within that time.
    Safe for concurrent use.
    """

    def __init__(
        self,
        *,
        max_age_seconds: float,
        max_messages: int,
        size: int,
        counters: EncryptionCounters,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_age_seconds = max_age_seconds
        self._max_messages = max_messages
        self._counters = counters
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._opening: ExpiringLru[bytes, CommittingAead] = ExpiringLru(size=size)
        self._sealing: ExpiringLru[tuple[str, str], DataKey] = ExpiringLru(size=size)

    def __len__(self) -> int:
        return len(self._opening) + len(self._sealing)

    def expiry_of_new_key(self) -> float:
        """Return the expiry of a key that is requested now; call it before the request."""
        return self._monotonic() + self._max_age_seconds

    def for_opening(self, name: bytes, *, counts_miss: bool = True) -> CommittingAead | None:
        """Return the key of that fingerprint, or `None`.

        `counts_miss` is false for a caller that looks again before it requests the key.
        """
        with self._lock:
            aead = self._opening.get(name, now=self._monotonic())
        if counts_miss or aead is not None:
            self._counters.data_key_lookup("open", hit=aead is not None)
        return aead

    def for_sealing(self, owner: tuple[str, str], *, counts_miss: bool = True) -> DataKey | None:
        """Return the owner's key with one more message counted, or `None` if it has none below its limits."""
        with self._lock:
            key = self._sealing.get(owner, now=self._monotonic())
            if key is not None and key.messages >= self._max_messages:
                self._sealing.discard(owner)
                key = None
            if key is not None:
                key.messages += 1
        if counts_miss or key is not None:
            self._counters.data_key_lookup("seal", hit=key is not None)
        return key

    def keep_for_opening(self, name: bytes, aead: CommittingAead, *, expires_at: float) -> None:
        """Keep a key that KMS has just generated, or that has authenticated a ciphertext."""
        with self._lock:
            now = self._monotonic()
            if self._opening.get(name, now=now) is None:
                self._opening.put(name, aead, expires_at=expires_at, now=now)

    def keep_for_sealing(self, key: DataKey, *, expires_at: float) -> None:
        """Keep a key that KMS has just generated, in place of the owner's last one."""
        with self._lock:
            self._sealing.put(key.owner, key, expires_at=expires_at, now=self._monotonic())

    def drop_expired(self) -> None:
        """Drop expired keys; called now and then, so that an idle process holds none."""
        with self._lock:
            now = self._monotonic()
            self._opening.drop_expired(now)
            self._sealing.drop_expired(now)


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    value: T
    expires_at: float


class ExpiringLru(Generic[K, T]):
    """At most `size` values, each until its expiry. Not safe for concurrent use.

    Times are seconds on the caller's clock. A lookup makes a value recently used and does not extend its life.
    """

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, _Entry[T]] = OrderedDict()  # least recently used first
        self._expiries: dict[K, float] = {}  # oldest first, so almost in the order of expiry

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: K, *, now: float) -> T | None:
        """Return a value that has not expired, or `None`."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.expires_at <= now:
            self.discard(name)
            return None
        self._entries.move_to_end(name)
        return entry.value

    def put(self, name: K, value: T, *, expires_at: float, now: float) -> None:
        """Replace the value of this name, unless the new one has expired; drop expired and surplus values."""
        self.discard(name)
        self.drop_expired(now)
        if expires_at <= now:
            return
        self._entries[name] = _Entry(value, expires_at)
        self._expiries[name] = expires_at
        while len(self._entries) > self._size:
            self.discard(next(iter(self._entries)))

    def discard(self, name: K) -> None:
        self._entries.pop(name, None)
        self._expiries.pop(name, None)

    def drop_expired(self, now: float) -> None:
        """Drop the oldest values up to the first that has not expired."""
        while self._expiries:
            name, expires_at = next(iter(self._expiries.items()))
            if expires_at > now:
                return
            self.discard(name)
