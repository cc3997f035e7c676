"""Which service the current operation is for. Most of what runs in between has no use for it, so nobody hands it on."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

NOBODY: Final = ""  # the vault itself: a sweep, a self-test
acting_for: Final[ContextVar[str]] = ContextVar("acting_for", default=NOBODY)
