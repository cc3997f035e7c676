"""A TCP relay in front of PostgreSQL's Unix socket, which can lose answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_CHUNK = 64 * 1024


class Relay:
    """Passes bytes on. `lose_next_answer` closes a connection in place of the answer to its next request."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._loses = False
        self.port = 0

    def lose_next_answer(self) -> None:
        """Close the connection once the server has answered the next request, which it has then committed."""
        self._loses = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(str(self._socket))
        sending = asyncio.create_task(self._pass_on(reader, server_writer))
        try:
            while answer := await server_reader.read(_CHUNK):
                if self._loses and answer.endswith(b"Z\0\0\0\5I"):  # ReadyForQuery: the statement has ended
                    self._loses = False
                    return
                writer.write(answer)
                await writer.drain()
        finally:
            sending.cancel()
            writer.close()
            server_writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while request := await reader.read(_CHUNK):
                writer.write(request)
                await writer.drain()
            writer.close()


@asynccontextmanager
async def running_relay(socket: Path) -> AsyncIterator[Relay]:
    relay = Relay(socket)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
