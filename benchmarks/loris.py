"""One slow-loris client, until it is stopped: `python -m benchmarks.loris PORT`.

It holds 200 connections whose heads never end, and reopens each one that is closed. It is a separate process, because
`/proc` then shows which workers hold its connections.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from benchmarks.load import LOOPBACK

_CONNECTIONS = 200


async def _hold(port: int) -> None:
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: vault\r\nX-Slow: ")
            while not writer.is_closing():
                await asyncio.sleep(1)
                writer.write(b"a")
                await writer.drain()
        await asyncio.sleep(0.1)


async def _attack(port: int) -> None:
    await asyncio.gather(*(_hold(port) for _ in range(_CONNECTIONS)))


if __name__ == "__main__":
    asyncio.run(_attack(int(sys.argv[1])))
