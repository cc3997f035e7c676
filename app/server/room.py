"""How many connections a process holds, and which go where there are too many."""

from __future__ import annotations

import heapq
import resource
from collections.abc import Iterable
from typing import Final, Protocol

_SHED_SHARE: Final = 64  # looking through all of them for each that comes would itself be work for an attacker
_RESERVED_DESCRIPTORS: Final = 200  # for the store, KMS, the audit trail, the key file and what uvicorn itself opens


class Sheddable(Protocol):
    """A connection, or one that is still in its TLS handshake."""

    @property
    def is_sheddable(self) -> bool: ...

    @property
    def worth(self) -> tuple[bool, float]:
        """Return the order in which they are kept: had an answer, and since when it has made nothing of its time."""
        ...

    def shed(self) -> None: ...


def make_room(newcomer: Sheddable, others: Iterable[Sheddable], *, count: int) -> None:
    """Shed some of the `count` connections, or the newcomer where all others are being served."""
    candidates = [other for other in others if other is not newcomer and other.is_sheddable]
    share = max(1, count // _SHED_SHARE)
    for victim in heapq.nsmallest(share, candidates, key=lambda other: other.worth) or [newcomer]:
        victim.shed()


def most_connections(wanted: int) -> int:
    """Return what is wanted, or less where the process may not open so many files."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, descriptors - min(_RESERVED_DESCRIPTORS, descriptors // 2)))
