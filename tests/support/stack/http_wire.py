"""As much of HTTP/1.1 as a proxy on loopback needs: heads, and bodies by the piece."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

_HEAD_END = b"\r\n\r\n"
_PIECE_BYTES = 65_536

# longer than any head, and than any line of a chunked body
STREAM_LIMIT_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Head:
    """A request's or an answer's first line and headers.

    `header_block` is the headers as they came, with their line ends and the empty line
    at the end, to be passed on untouched.
    """

    first_line: bytes
    header_block: bytes
    headers: dict[bytes, bytes]

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection after this message."""
        return self.headers.get(b"connection", b"").lower() == b"close"


async def read_head(stream: asyncio.StreamReader) -> Head | None:
    """Read the next message's head; none where the peer closed between two messages.

    Raises `asyncio.IncompleteReadError` where it closed inside of a head.
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
    """Read the body as it is on the wire, chunk framing included; none where the head announces none."""
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
    """Whether PostgREST leaves the connection open: after a HEAD it closes, and does not say so."""
    return method != b"HEAD" and not answer.closes


def message(status_line: str, *, content_type: str, body: bytes, headers: tuple[str, ...] = ()) -> bytes:
    """Write an answer of our own."""
    lines = (
        f"HTTP/1.1 {status_line}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode() + body
