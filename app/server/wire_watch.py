"""Who is told of what happens to connections below any request."""

from __future__ import annotations

from typing import Protocol


class WireWatch(Protocol):
    """Called on the event loop, so it must be quick."""

    def opened(self) -> None: ...

    def closed(self) -> None: ...

    def refused(self, reason: str) -> None:
        """Hear of one refusal: `head_too_large`, `body_too_large`, `too_slow`, `unread` or `shed`."""
