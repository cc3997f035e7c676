"""Ranges of row ids: the shard of one of several sweeps, and a scattered start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID, uuid4

MAXIMUM_SHARDS: Final = 999
_SHARD: Final = re.compile(r"([1-9][0-9]{0,2})/([1-9][0-9]{0,2})")
_UUIDS: Final = 2**128


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The row ids above `after`, up to and including `last`; `None` is no bound."""

    after: str | None = None
    last: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` equal ranges of row ids, `number` counts from 1.

    Row ids are random UUIDs, so equal ranges hold about equally many rows. The shards of one `count` hold every id
    exactly once, even one that is no UUID: the first has no lower bound, the last no upper bound.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that `I/N` names; raises `ValueError`."""
        found = _SHARD.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]):
            raise ValueError(f"must be I/N with I from 1 to N and N at most {MAXIMUM_SHARDS}, like 1/2")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def key_range(self) -> KeyRange:
        return KeyRange(self._bound(self.number - 1), self._bound(self.number))

    def _bound(self, shards: int) -> str | None:
        """Return the last id of the first `shards` shards, `None` at either end."""
        return str(UUID(int=shards * _UUIDS // self.count)) if 0 < shards < self.count else None


def scattered_ranges() -> list[KeyRange]:
    """Return all ids as two ranges, from a random id to the end and from the beginning to that id."""
    start = str(uuid4())
    return [KeyRange(after=start), KeyRange(last=start)]
