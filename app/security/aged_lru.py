"""A bounded mapping whose values end: the least recently used goes first, and none outlives its time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    value: T
    ends_at: float


class AgedLru(Generic[K, T]):
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
