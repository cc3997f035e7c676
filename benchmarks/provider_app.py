"""An OAuth provider that answers each request with new tokens after 50 ms, whatever it is asked."""

from __future__ import annotations

import asyncio
import itertools
import sys
from typing import Final, cast

import uvloop

from benchmarks.load import LOOPBACK

ANSWER_SECONDS: Final = 0.05
_serial: Final = itertools.count()


class _Provider(asyncio.Protocol):
    """One connection, which carries one request: the vault opens a new one for each."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if end and len(body) >= length:
            asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._answer)

    def _answer(self) -> None:
        number = next(_serial)
        body = (
            f'{{"access_token": "access-{number:064}", "refresh_token": "refresh-{number:064}", '
            '"token_type": "Bearer", "expires_in": 3600}'
        ).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Provider, LOOPBACK, port, backlog=1_024)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
