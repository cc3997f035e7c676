"""Data keys in memory: bounded in age, messages and number."""

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

# --- A bounded mapping whose values end: the least recently used goes first, and none outlives its time.

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    value: T
    ends_at: float


class ExpiringLru(Generic[K, T]):
    """At most `size` values, each until its own end. Not safe for concurrent use.

    Times are seconds of one clock, which callers read. Looking a value up makes it recently used, and no younger.
    """

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, _Kept[T]] = OrderedDict()  # the least recently used first
        self._ends: dict[K, float] = {}  # in the order of keeping, in which they also end, give or take a request

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: K, *, now: float) -> T | None:
        """Return a value that has not ended, or `None`."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        if kept.ends_at <= now:
            self.discard(name)
            return None
        self._kept.move_to_end(name)
        return kept.value

    def put(self, name: K, value: T, *, ends_at: float, now: float) -> None:
        """Keep a value, unless it has ended; drops what has, and the least recently used where it is too much."""
        self.discard(name)
        self.drop_ended(now)
        if ends_at <= now:
            return
        self._kept[name] = _Kept(value, ends_at)
        self._ends[name] = ends_at
        while len(self._kept) > self._size:
            self.discard(next(iter(self._kept)))

    def discard(self, name: K) -> None:
        """Drop a value, if it is there."""
        self._kept.pop(name, None)
        self._ends.pop(name, None)

    def drop_ended(self, now: float) -> None:
        """Drop what has ended, up to the first that has not."""
        while self._ends:
            name, ends_at = next(iter(self._ends.items()))
            if ends_at > now:
                return
            self.discard(name)


# --- Data keys in memory: how long, how often and how many.
# After the data-key caching of the AWS Encryption SDK, whose limits and reasons it shares:
# <https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/data-key-caching.html>

REMEMBERED_NAMES: Final = 10_000  # as many as data keys are kept by default


@dataclass(slots=True)
class DataKey:
    """A data key that may still seal.

    `owner` is the user and provider that it belongs to, `head` what its packages have in common.
    """

    owner: tuple[str, str]
    aead: CommittingAead = field(repr=False)
    head: str = field(repr=False)
    key_arn: str
    tracking_id: str
    messages: int = 0


@lru_cache(maxsize=REMEMBERED_NAMES)  # one data key is looked up for each of its messages
def fingerprint(wrapped: bytes, context: TokenContext) -> bytes:
    """Name an unwrapped key by what KMS would be asked, context included, so a hit can never skip the context."""
    return hashlib.sha256(length_prefixed(wrapped) + context.encryption_context_bytes()).digest()


class DataKeyCache:
    """Unwrapped data keys, no older than `max_age_seconds`, no more than `size`, least recently used dropped first.

    A key that was generated here seals up to `max_messages` messages for its owner. Age counts from before KMS is asked
    for the key and is not extended by use, so a key that KMS no longer grants stops working here within
    `max_age_seconds`. Safe for concurrent use.
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

    def end_of_one_asked_for_now(self) -> float:
        """Return when a key has to be dropped that KMS is about to be asked for."""
        return self._monotonic() + self._max_age_seconds

    def for_opening(self, name: bytes, *, counts_miss: bool = True) -> CommittingAead | None:
        """Return the unwrapped key of that fingerprint, or `None`.

        A caller that will look again before it goes without the key says so by `counts_miss`.
        """
        with self._lock:
            aead = self._opening.get(name, now=self._monotonic())
        if counts_miss or aead is not None:
            self._counters.data_key_lookup("open", hit=aead is not None)
        return aead

    def for_sealing(self, owner: tuple[str, str], *, counts_miss: bool = True) -> DataKey | None:
        """Return the owner's key and count one message on it, or `None` where none may seal any more."""
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

    def keep_for_opening(self, name: bytes, aead: CommittingAead, *, ends_at: float) -> None:
        """Keep a key that KMS has just generated, or that has authenticated a ciphertext."""
        with self._lock:
            now = self._monotonic()
            if self._opening.get(name, now=now) is None:
                self._opening.put(name, aead, ends_at=ends_at, now=now)

    def keep_for_sealing(self, key: DataKey, *, ends_at: float) -> None:
        """Keep a key that KMS has just generated, in the place of the owner's last one."""
        with self._lock:
            self._sealing.put(key.owner, key, ends_at=ends_at, now=self._monotonic())

    def drop_expired(self) -> None:
        """Drop what has expired; called now and then, so that an idle process keeps no old keys."""
        with self._lock:
            now = self._monotonic()
            self._opening.drop_ended(now)
            self._sealing.drop_ended(now)
