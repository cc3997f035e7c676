"""uvicorn's HTTP protocol, with bounds on how large a request may be and how slowly it may come or be read.

uvicorn bounds none of it. A caller that opens connections and sends a byte now and then, or never reads its answer,
would hold them, and the memory behind them, for ever.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.server.handshake import Handshake
from app.server.room import Sheddable, make_room, most_connections
from app.server.security_headers import SECURITY_HEADERS
from app.server.turns import in_turn
from app.server.wire_limits import WireLimits
from app.server.wire_watch import WireWatch

_SLICE_BYTES: Final = 4096
_END_OF_HEAD: Final = b"\r\n\r\n"
_LEAST_HEAD_BYTES: Final = 14  # "GET / HTTP/1.1" before its end, so a piece of a body holds one head at most
_HEADERS: Final = b"".join(b"\r\n" + name + b": " + value for name, value in SECURITY_HEADERS)
_END: Final = b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE: Final = b"413 Content Too Large"
_HEAD_TOO_LARGE: Final = b"431 Request Header Fields Too Large"
_TOO_SLOW: Final = b"408 Request Timeout"
_REASONS: Final = {_TOO_LARGE: "body_too_large", _HEAD_TOO_LARGE: "head_too_large", _TOO_SLOW: "too_slow"}


class _Awaits(Enum):
    HEAD = auto()  # the first request, or the rest of one's head
    BODY = auto()
    ANSWER = auto()  # the request is here: we are to work
    REQUEST = auto()  # kept alive, idle


class LimitedHttp(HttpToolsProtocol):
    """Refuses with 431, 413 or 408, or closes where nothing can be said any more. A request that has been received
    whole is never cut off.

    Past its limit of connections, which counts TLS handshakes, the process sheds some that are not being served, or
    do not read what they are served: first those that never had an answer, and among equals those that have made
    nothing of their time for longest. So a flood sheds its own, and a new caller always has the time to send its
    request.
    """

    limits: ClassVar[WireLimits] = WireLimits()

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  uvicorn's
        super().__init__(*arguments, **options)
        self._awaits = _Awaits.HEAD
        self._since = 0.0
        self._begun = self._answered = 0  # requests whose heads are complete, and answers
        self._head_has_begun = self._ignores = False
        self._request_bytes = 0
        self._held = b""  # read, and not yet parsed
        self._unread_since = 0.0
        self._unread_answer = -1  # the number of the answer that had to wait for its reader
        self._is_shed = False
        self._handshake: Handshake | None = None
        self.watch: WireWatch | None = self.app_state.get("wire")
        self._closing_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(self.limits.tick_seconds, self._tick)
        if self._handshake is None:
            self._opened()
            self._make_room(self)
        else:  # has been counted when it began
            self._handshake.underway.discard(self._handshake)

    def handshake_begun(self, handshake: Handshake) -> None:
        """Count a connection that is not ours yet, and make room for it."""
        self._handshake = handshake
        self._opened()
        self._make_room(handshake)

    def handshake_lost(self) -> None:
        """Hear that the connection below TLS has ended, whether it was ever ours or not."""
        self._closed()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._held = b""
        self._unset_keepalive_if_required()  # uvicorn leaves it where the connection broke
        super().connection_lost(exc)
        if self._handshake is None:
            self._closed()

    def data_received(self, data: bytes) -> None:
        self._held += data
        self._parse()

    def _parse(self) -> None:
        """Parse what has been read, up to the next request that is whole; the rest waits until that has its answer.

        It goes in pieces, so that a count of bytes is exact to one of them though a read may hold several requests.
        """
        data, self._held = self._held, b""
        start = 0
        while start < len(data):
            if self._ignores or self.transport.is_closing():
                return
            if self.is_served:
                self._hold(data[start:])
                return
            least = start + (_LEAST_HEAD_BYTES if self._awaits is _Awaits.BODY else 0)
            found = data.find(_END_OF_HEAD, least, start + _SLICE_BYTES)
            end = min(len(data), start + _SLICE_BYTES) if found < 0 else found + len(_END_OF_HEAD)
            super().data_received(data[start:end])
            self._count(end - start)
            start = end

    def _hold(self, rest: bytes) -> None:
        if len(rest) > self.limits.held_bytes:
            self._refuse(_TOO_LARGE)
        else:
            self._held = rest
            self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        del msg
        self._refuse(b"400 Bad Request")

    def pause_writing(self) -> None:
        if self._unread_answer != self._answered:  # one that stirs now and then gets no more time for it
            self._unread_answer, self._unread_since = self._answered, self.loop.time()
        super().pause_writing()

    # --- the request

    def on_message_begin(self) -> None:
        self._await(_Awaits.HEAD)
        self._head_has_begun = True
        self._request_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._awaits is _Awaits.HEAD:  # a trailer is no header: the application has authorised the request already
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.limits.head_bytes:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._begun - self._answered > self.limits.pipelined:
            self._refuse(_TOO_LARGE)
        else:
            self._awaits = _Awaits.BODY
            self._begun += 1
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._ignores:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._ignores:
            return
        self._head_has_begun = False
        if self._answered < self._begun:
            self._awaits = _Awaits.ANSWER
        else:
            self._await(_Awaits.REQUEST)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._answered += 1
        if self._awaits is _Awaits.ANSWER and self._answered == self._begun:
            self._await(_Awaits.REQUEST)
        super().on_response_complete()
        if self._held:
            in_turn(self.loop, self._parse)

    # --- the bounds

    def _await(self, what: _Awaits) -> None:
        self._awaits = what
        self._since = self.loop.time()

    def _count(self, size: int) -> None:
        self._request_bytes += size
        if self._awaits is _Awaits.HEAD and self._request_bytes > self.limits.head_bytes + _SLICE_BYTES:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._awaits is _Awaits.BODY and self._request_bytes > self.limits.request_bytes:
            self._refuse(_TOO_LARGE)

    @property
    def is_served(self) -> bool:
        """Whether a request is here whole and its answer is not out."""
        unanswered = self._begun - self._answered
        return unanswered > (1 if self._awaits is _Awaits.BODY else 0)

    @property
    def is_unread(self) -> bool:
        """Whether an answer waits for its reader, or has waited and is not out yet."""
        return self.flow.write_paused or self._unread_answer == self._answered

    @property
    def is_sheddable(self) -> bool:
        return not self._is_shed and (not self.is_served or self.is_unread or self.transport.is_closing())

    @property
    def worth(self) -> tuple[bool, float]:
        """Among connections that may be shed, the order in which they are kept."""
        return self._answered > 0, self._unread_since if self.is_unread else self._since

    def shed(self) -> None:
        self._is_shed = True
        self._tell("shed")
        self.transport.abort()

    def _make_room(self, newcomer: Sheddable) -> None:
        underway = set() if self._handshake is None else self._handshake.underway
        count = len(self.connections) + len(underway)
        if count > most_connections(self.limits.connections):
            ours = (other for other in self.connections if isinstance(other, LimitedHttp))
            make_room(newcomer, (*underway, *ours), count=count)

    def _tick(self) -> None:
        now, limits = self.loop.time(), self.limits
        self._timer = self.loop.call_later(self.limits.tick_seconds, self._tick)
        if self._ignores or self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since > limits.closing_seconds:
                self.transport.abort()
        elif self.is_unread:
            if now - self._unread_since > limits.unread_seconds:
                self._tell("unread")
                self.transport.abort()
        elif not self.is_served:
            self._end_if_due(now - self._since)

    def _end_if_due(self, waited: float) -> None:
        limits = self.limits
        if self._awaits is _Awaits.HEAD and waited > limits.head_seconds:
            if self._head_has_begun:
                self._refuse(_TOO_SLOW)
            else:  # an answer to no request could be taken for one to the next
                self._tell(_REASONS[_TOO_SLOW])
                self.transport.close()
        elif self._awaits is _Awaits.BODY and waited > limits.request_seconds:
            self._refuse(_TOO_SLOW)
        elif self._awaits is _Awaits.REQUEST and waited > limits.idle_seconds:
            self.transport.close()

    def _refuse(self, status: bytes) -> None:
        """Read nothing more, say why where no answer is on its way, and close after those that are."""
        if self._ignores:
            return
        self._ignores = True
        self._tell(_REASONS.get(status))
        if self.transport.is_closing():
            return
        if self.is_served:
            self.shutdown()  # uvicorn's: closes once what is being served has its answer
            return
        answering = self._begun > self._answered and self.cycle.response_started
        if not answering and not (self._awaits is _Awaits.BODY and self._answered == self._begun):
            self.transport.write(b"HTTP/1.1 " + status + _HEADERS + _END)
        self.transport.close()

    # --- who is told

    def _opened(self) -> None:
        if self.watch is not None:
            self.watch.opened()

    def _closed(self) -> None:
        if self.watch is not None:
            self.watch.closed()

    def _tell(self, reason: str | None) -> None:
        if self.watch is not None and reason is not None:
            self.watch.refused(reason)
