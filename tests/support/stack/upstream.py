"""The gateway's connections to PostgREST, which outlive a request."""

import asyncio
from dataclasses import dataclass

from tests.support.stack.http_wire import STREAM_LIMIT_BYTES
from tests.support.stack.ports import LOOPBACK


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection; it carries one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Upstream:
    """A stack of idle connections to one port. There are as many as requests at one time."""

    def __init__(self, *, port: int) -> None:
        """Connect on demand only."""
        self._port = port
        self._idle: list[Connection] = []

    async def take(self) -> Connection:
        """Take a connection that is still open, or make one. Raises `OSError` where none can be."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.writer.transport.abort()
        reader, writer = await asyncio.open_connection(LOOPBACK, self._port, limit=STREAM_LIMIT_BYTES)
        return Connection(reader=reader, writer=writer)

    def give_back(self, connection: Connection, *, is_reusable: bool) -> None:
        """For the next request, if this one's answer has been read to its end."""
        if is_reusable:
            self._idle.append(connection)
        else:
            connection.writer.transport.abort()

    def close(self) -> None:
        """Drop what is idle."""
        for connection in self._idle:
            connection.writer.transport.abort()
        self._idle.clear()
