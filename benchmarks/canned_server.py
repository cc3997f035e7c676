"""A server that answers with fixed bytes: the upper bound of the client's rate."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from benchmarks.load import LOOPBACK

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 600\r\n\r\n" + b" " * 600


class _Canned(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002  the client sends whole requests
        self._transport.write(_ANSWER)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Canned, LOOPBACK, port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
