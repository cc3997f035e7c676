"""Signals that end a command in an orderly way."""

from __future__ import annotations

import asyncio
import signal


def first_signal() -> asyncio.Future[str]:
    """Catch SIGTERM and SIGINT from now on; the future's result is the name of the first."""
    loop = asyncio.get_running_loop()
    name: asyncio.Future[str] = loop.create_future()

    def note(number: signal.Signals) -> None:
        if not name.done():
            name.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note, number)
    return name
