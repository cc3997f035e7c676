"""uvicorn's HTTP protocol, with bounds on how large a request may be and how slowly it may come or be read.

uvicorn bounds none of it. A caller that opens connections and sends a byte now and then, or never reads its answer,
would hold them, and the memory behind them, for ever.
"""

from __future__ import annotations

import heapq
import resource
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.security_headers import SECURITY_HEADERS

if TYPE_CHECKING:
    import asyncio

_SLICE_BYTES: Final = 4096
_SHED_SHARE: Final = 64  # looking through all of them for each that comes would itself be work for an attacker
_RESERVED_DESCRIPTORS: Final = 200  # for the store, KMS, files and what uvicorn itself opens
_HEADERS: Final = b"".join(b"\r\n" + name + b": " + value for name, value in SECURITY_HEADERS)
_END: Final = b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE: Final = b"413 Content Too Large"
_HEAD_TOO_LARGE: Final = b"431 Request Header Fields Too Large"
_TOO_SLOW: Final = b"408 Request Timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """What one connection may take. A request is at most 64 KiB of body, which in chunks of a byte are six times that.

    `request_seconds` is longer than `app.api.body` waits, so that what the application says goes out first.
    `idle_seconds` is above the 60 s of common load balancers, so that it is not us who cut an idle connection.
    """

    head_bytes: int = 32 * 1024
    request_bytes: int = 1024 * 1024
    pipelined: int = 32
    head_seconds: float = 10.0
    request_seconds: float = 20.0
    unread_seconds: float = 20.0
    idle_seconds: float = 75.0
    closing_seconds: float = 10.0
    tick_seconds: float = 1.0
    connections: int = 1000


class _Awaits(Enum):
    HEAD = auto()  # the first request, or the rest of one's head
    BODY = auto()
    ANSWER = auto()  # the request is here: we are to work
    REQUEST = auto()  # kept alive, idle


class BoundedHttp(HttpToolsProtocol):
    """Refuses with 431, 413 or 408, or closes where nothing can be said any more. A request that has been received
    whole is never cut off.

    Past its limit of connections the process sheds some that are not being served: first those that never had an
    answer, and among equals those that have made nothing of their time for longest. So a flood sheds its own, and a new
    caller always has the time to send its request.
    """

    limits: ClassVar[WireLimits] = WireLimits()

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  uvicorn's
        super().__init__(*arguments, **options)
        self._awaits = _Awaits.HEAD
        self._since = 0.0
        self._begun = self._answered = 0  # requests whose heads are complete, and answers
        self._head_has_begun = self._ignores = False
        self._request_bytes = 0
        self._unread_since: float | None = None
        self._closing_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(self.limits.tick_seconds, self._tick)
        most = _most_connections(self.limits)
        if len(self.connections) > most:
            self._shed(max(1, most // _SHED_SHARE))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._unset_keepalive_if_required()  # uvicorn leaves it where the connection broke
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # in slices, so that a count of bytes is exact to one of them though a read may hold several requests
        for start in range(0, len(data), _SLICE_BYTES):
            if self._ignores or self.transport.is_closing():
                return
            part = data[start : start + _SLICE_BYTES]
            super().data_received(part)
            self._count(len(part))

    def send_400_response(self, msg: str) -> None:
        del msg
        self._refuse(b"400 Bad Request")

    def pause_writing(self) -> None:
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

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
    def worth(self) -> tuple[bool, float]:
        """Among connections that are not being served, the order in which they are kept."""
        return self._answered > 0, self._since

    def _tick(self) -> None:
        now, limits = self.loop.time(), self.limits
        self._timer = self.loop.call_later(self.limits.tick_seconds, self._tick)
        if self._ignores or self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since > limits.closing_seconds:
                self.transport.abort()
        elif self._unread_since is not None:
            if now - self._unread_since > limits.unread_seconds:
                self.transport.abort()
        elif not self.is_served:
            self._end_if_due(now - self._since)

    def _end_if_due(self, waited: float) -> None:
        limits = self.limits
        if self._awaits is _Awaits.HEAD and waited > limits.head_seconds:
            if self._head_has_begun:
                self._refuse(_TOO_SLOW)
            else:  # an answer to no request could be taken for one to the next
                self.transport.close()
        elif self._awaits is _Awaits.BODY and waited > limits.request_seconds:
            self._refuse(_TOO_SLOW)
        elif self._awaits is _Awaits.REQUEST and waited > limits.idle_seconds:
            self.transport.close()

    def _refuse(self, status: bytes) -> None:
        """Read nothing more, say why where no answer is on its way, and close after those that are."""
        self._ignores = True
        if self.transport.is_closing():
            return
        if self.is_served:
            self.shutdown()  # uvicorn's: closes once what is being served has its answer
            return
        answering = self._begun > self._answered and self.cycle.response_started
        if not answering and not (self._awaits is _Awaits.BODY and self._answered == self._begun):
            self.transport.write(b"HTTP/1.1 " + status + _HEADERS + _END)
        self.transport.close()

    def _shed(self, count: int) -> None:
        candidates = [
            other
            for other in self.connections
            if other is not self
            and isinstance(other, BoundedHttp)
            and not other.is_served
            and not other.transport.is_closing()
        ]
        victims = heapq.nsmallest(count, candidates, key=lambda other: other.worth)
        for victim in victims or [self]:
            victim.transport.abort()


def _most_connections(limits: WireLimits) -> int:
    """Return the limit, or less where the process may not open so many files."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return limits.connections
    return max(1, min(limits.connections, descriptors - _RESERVED_DESCRIPTORS))
