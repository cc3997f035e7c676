"""Denials by KMS, remembered for a moment: asking again at once gets the same answer, at the price of a success."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from app.errors import KeyDenied

DENIALS: Final = 3
SECONDS: Final = 1.0


@dataclass(slots=True)
class _Denied:
    """`times` in a row, the last of them with `error`; not asked again before `ask_again_at`."""

    error: KeyDenied
    times: int = 0
    ask_again_at: float = 0.0


class DenialMemory:
    """After three denials of one thing in a row the last is repeated for a second; then one call may ask again.

    Three, because a single caller's denial should not be everybody's. Safe for concurrent use.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._denied: dict[Hashable, _Denied] = {}

    def admit(self, what: Hashable) -> None:
        """Let a call pass, or raise what the last one was denied with."""
        with self._lock:
            denied = self._denied.get(what)
            if denied is None or denied.times < DENIALS:
                return
            if self._monotonic() >= denied.ask_again_at:
                denied.ask_again_at = self._monotonic() + SECONDS
                return
        # a copy: as one object it would gather the traceback of everyone who raises it
        raise copy.copy(denied.error)

    def answered(self, what: Hashable, error: KeyDenied | None) -> None:
        """Note how a call ended that was answered; `None` where it was not denied."""
        with self._lock:
            if error is None:
                self._denied.pop(what, None)
                return
            denied = self._denied.setdefault(what, _Denied(error))
            denied.error, denied.times = copy.copy(error), denied.times + 1
            denied.ask_again_at = self._monotonic() + SECONDS
