"""Data keys in memory: how long, how often and how many.

After the data-key caching of the AWS Encryption SDK, whose limits and reasons it shares:
<https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/data-key-caching.html>
"""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from app.security.context import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from app.security.aead import CommittingAead
    from app.security.context import TokenContext
    from app.security.counters import EncryptionCounters

REMEMBERED_NAMES: Final = 4_096
K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    value: T
    expires_at: float


@lru_cache(maxsize=REMEMBERED_NAMES)  # one data key is looked up for each of its messages
def fingerprint(wrapped: bytes, context: TokenContext) -> bytes:
    """Name an unwrapped key by what KMS would be asked, context included, so a hit can never skip the context."""
    return hashlib.sha256(length_prefixed(wrapped) + context.encryption_context_bytes()).digest()


class DataKeyCache:
    """Unwrapped data keys, no older than `max_age_seconds`, no more than `size`, least recently used dropped first.

    A key that was generated here seals up to `max_messages` messages for its owner. Age counts from the moment when
    KMS gave the key and is not extended by use, so a key that KMS no longer grants stops working here within
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
        self._size = size
        self._counters = counters
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._opening: OrderedDict[bytes, _Kept[CommittingAead]] = OrderedDict()
        self._sealing: OrderedDict[tuple[str, str], _Kept[DataKey]] = OrderedDict()
        # in the order in which they expire, for all live equally long; one that is gone by then is passed over
        self._opening_ends: deque[tuple[float, bytes]] = deque()
        self._sealing_ends: deque[tuple[float, tuple[str, str]]] = deque()

    def __len__(self) -> int:
        return len(self._opening) + len(self._sealing)

    def for_opening(self, name: bytes, *, counts_miss: bool = True) -> CommittingAead | None:
        """Return the unwrapped key of that fingerprint, or `None`.

        A caller that will look again before it goes without the key says so by `counts_miss`.
        """
        with self._lock:
            aead = self._live(self._opening, name)
        if counts_miss or aead is not None:
            self._counters.data_key_lookup("open", hit=aead is not None)
        return aead

    def for_sealing(self, owner: tuple[str, str], *, counts_miss: bool = True) -> DataKey | None:
        """Return the owner's key and count one message on it, or `None` where none may seal any more."""
        with self._lock:
            key = self._live(self._sealing, owner)
            if key is not None and key.messages >= self._max_messages:
                del self._sealing[owner]
                key = None
            if key is not None:
                key.messages += 1
        if counts_miss or key is not None:
            self._counters.data_key_lookup("seal", hit=key is not None)
        return key

    def keep_for_opening(self, name: bytes, aead: CommittingAead) -> None:
        """Keep a key that has authenticated a ciphertext. One that is kept already grows no younger."""
        with self._lock:
            if self._live(self._opening, name) is None:
                self._keep(self._opening, self._opening_ends, name, aead)

    def keep_for_sealing(self, key: DataKey) -> None:
        """Keep a key that KMS has just generated, in the place of the owner's last one."""
        with self._lock:
            self._keep(self._sealing, self._sealing_ends, key.owner, key)

    def drop_expired(self) -> None:
        """Drop what has expired; called now and then, so that an idle process keeps no old keys."""
        now = self._monotonic()
        with self._lock:
            _drop_expired(self._opening, self._opening_ends, now)
            _drop_expired(self._sealing, self._sealing_ends, now)

    def _live(self, keys: OrderedDict[K, _Kept[T]], name: K) -> T | None:
        kept = keys.get(name)
        if kept is None:
            return None
        if kept.expires_at <= self._monotonic():
            del keys[name]
            return None
        keys.move_to_end(name)
        return kept.value

    def _keep(self, keys: OrderedDict[K, _Kept[T]], ends: deque[tuple[float, K]], name: K, value: T) -> None:
        now = self._monotonic()
        _drop_expired(keys, ends, now)
        expires_at = now + self._max_age_seconds
        keys[name] = _Kept(value, expires_at)
        keys.move_to_end(name)
        ends.append((expires_at, name))
        while len(keys) > self._size:
            keys.popitem(last=False)


def _drop_expired(keys: OrderedDict[K, _Kept[T]], ends: deque[tuple[float, K]], now: float) -> None:
    while ends and ends[0][0] <= now:
        _, name = ends.popleft()
        kept = keys.get(name)
        if kept is not None and kept.expires_at <= now:
            del keys[name]


class SingleFlight(Generic[T]):
    """Concurrent calls for one name become one call, whose result or error all of them get."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Future[T]] = {}

    def run(self, name: Hashable, call: Callable[[], T]) -> T:
        """Run `call`, or wait for the one that is running; `call` itself bounds how long that takes."""
        with self._lock:
            flight = self._flights.get(name)
            leads = flight is None
            if flight is None:
                flight = self._flights[name] = Future()
        if not leads:
            error = flight.exception()
            if error is not None:
                # a copy: as one object it would gather the traceback of everyone who raises it
                raise copy.copy(error)
            return flight.result()
        try:
            flight.set_result(call())
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[name]
        return flight.result()
