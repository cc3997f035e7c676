"""HTTP/1.1 for the gateway: message heads, bodies in pieces, and reused connections to PostgREST."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.support.stack.loopback import LOOPBACK

_HEAD_END = b"\r\n\r\n"
_PIECE_BYTES = 65_536

# longer than any head, and than any line of a chunked body
STREAM_LIMIT_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Head:
    """First line and headers of a request or an answer.

    `header_block` holds the headers as received, with line ends and the empty line at the end, to be passed on as is.
    """

    first_line: bytes
    header_block: bytes
    headers: dict[bytes, bytes]

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection after this message."""
        return self.headers.get(b"connection", b"").lower() == b"close"


async def read_head(stream: asyncio.StreamReader) -> Head | None:
    """Read the next message's head; `None` if the peer closed between two messages.

    Raises `asyncio.IncompleteReadError` if it closed within a head.
    """
    try:
        raw = await stream.readuntil(_HEAD_END)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first_line, _, header_block = raw.partition(b"\r\n")
    headers: dict[bytes, bytes] = {}
    for line in header_block.split(b"\r\n"):
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return Head(first_line=first_line, header_block=header_block, headers=headers)


async def body_pieces(stream: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """Yield the body as it is on the wire, chunk framing included; nothing if the head announces no body."""
    length = head.headers.get(b"content-length")
    if head.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        size = -1
        while size != 0:
            size_line = await stream.readuntil(b"\r\n")
            size = int(size_line.partition(b";")[0], base=16)
            yield size_line + await stream.readexactly(size + 2)
    elif length is not None:
        remaining = int(length)
        while remaining:
            piece = await stream.readexactly(min(remaining, _PIECE_BYTES))
            remaining -= len(piece)
            yield piece


def has_body(method: bytes, answer: Head) -> bool:
    """Whether a body follows this answer to a request of this method."""
    status = answer.first_line.split(b" ", maxsplit=2)[1]
    return method != b"HEAD" and status not in {b"204", b"304"}


def stays_open(method: bytes, answer: Head) -> bool:
    """Whether PostgREST leaves the connection open: after a HEAD it closes without announcing it."""
    return method != b"HEAD" and not answer.closes


def message(status_line: str, *, content_type: str, body: bytes, headers: tuple[str, ...] = ()) -> bytes:
    """Return the bytes of an answer that the gateway makes itself."""
    lines = (
        f"HTTP/1.1 {status_line}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode() + body


@dataclass(frozen=True, slots=True)
class UpstreamConnection:
    """A connection to PostgREST; it carries one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class UpstreamConnections:
    """Idle connections to one port, last used first. There are as many connections as requests at once."""

    def __init__(self, *, port: int) -> None:
        self._port = port
        self._idle: list[UpstreamConnection] = []

    async def take(self) -> UpstreamConnection:
        """Return an idle connection that is still open, or a new one; raises `OSError` if connecting fails."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.writer.transport.abort()
        reader, writer = await asyncio.open_connection(LOOPBACK, self._port, limit=STREAM_LIMIT_BYTES)
        return UpstreamConnection(reader=reader, writer=writer)

    def give_back(self, connection: UpstreamConnection, *, is_reusable: bool) -> None:
        """Keep a connection for the next request if its answer was read to the end, else drop it."""
        if is_reusable:
            self._idle.append(connection)
        else:
            connection.writer.transport.abort()

    def close(self) -> None:
        """Drop the idle connections."""
        for connection in self._idle:
            connection.writer.transport.abort()
        self._idle.clear()
