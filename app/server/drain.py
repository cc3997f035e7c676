"""Draining: a stopping vault serves on for some seconds, while its callers move to other replicas."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType

import structlog

_log = structlog.get_logger()


class Drain:
    """Delays SIGTERM by `seconds`, in which the vault serves as before.

    `GET /readyz` is 503 meanwhile, so load balancers send new connections elsewhere; and each answer ends its
    connection, so callers with an open one connect anew. Without that, a request that is on its way when the vault
    closes the connection gets no answer. SIGINT, which comes from a terminal, is not delayed.
    """

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self.started = False

    def delay_sigterm(self) -> None:
        """Replace the handler of SIGTERM by one that calls it later; must be called on the main thread's event loop."""
        if not self._seconds:
            return
        loop = asyncio.get_running_loop()
        stop = signal.getsignal(signal.SIGTERM)
        if not callable(stop):
            raise TypeError("SIGTERM has no handler that could be delayed")

        def begin() -> None:
            _log.info("draining", seconds=self._seconds)
            loop.call_later(self._seconds, stop, signal.SIGTERM, None)

        def on_signal(_signal: int, _frame: FrameType | None) -> None:
            if not self.started:  # the supervisor of workers and the service manager may each send one
                self.started = True
                loop.call_soon_threadsafe(begin)

        signal.signal(signal.SIGTERM, on_signal)
