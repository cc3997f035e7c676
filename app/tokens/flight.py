"""A call that is under way in a thread, and those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, eq=False)
class Flight:
    """Ends with the last who waits where it `derives` a key, for that takes a place and a processor from others.

    What asks a key service goes on: its thread is taken in any case, and the next who needs the key finds it.
    """

    result: asyncio.Future[Any]
    derives: bool
    waiting: int = 0

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Count among those who wait; only then may the result be awaited, and shielded."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            if self.derives and not self.waiting:
                self.result.cancel()  # which does nothing where it has landed
