"""uvicorn's HTTP protocol with bounds on size, time and number.

uvicorn itself limits neither the size of a request, nor the time for sending one or reading its answer, nor the number
of connections.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from app.server.drain import Drain
from app.server.security_headers import SECURITY_HEADERS

if TYPE_CHECKING:  # `serve` imports this module before it has set prometheus-client's folder, which is read on import
    from app.observability.metrics.requests import WireMetrics

_SLICE_BYTES: Final = 4096
_BODY_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})
_PIECE_BYTES: Final = 64 * 1024  # of an answer, written at once
_WRITE_BUFFER_BYTES: Final = 16 * 1024  # of one connection, that may be unread without its place being held
_RESERVED_DESCRIPTORS: Final = 200  # for the store, KMS, the audit trail, the key file and uvicorn itself
_HEADERS: Final = b"".join(b"\r\n" + name + b": " + value for name, value in SECURITY_HEADERS)
_END: Final = b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_BAD_REQUEST: Final = b"400 Bad Request"
_TOO_SLOW: Final = b"408 Request Timeout"
_TOO_LARGE: Final = b"413 Content Too Large"
_HEAD_TOO_LARGE: Final = b"431 Request Header Fields Too Large"
_REASONS: Final = {_TOO_SLOW: "too_slow", _TOO_LARGE: "body_too_large", _HEAD_TOO_LARGE: "head_too_large"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of one connection, and the number of connections of one process."""

    head_bytes: int = 32 * 1024
    request_bytes: int = 1024 * 1024  # a body has at most 64 KiB, which chunks of one byte make six times as long
    pipelined: int = 2  # requests received behind the one that is being answered
    head_seconds: float = 10.0
    body_seconds: float = 20.0  # longer than app.api.request_body waits, so that its answer comes first
    unread_seconds: float = 20.0  # for a whole answer, even if its reader reads a little now and then
    idle_seconds: float = 75.0  # above the 60 s of common load balancers, so that the balancer closes first
    closing_seconds: float = 10.0
    tick_seconds: float = 1.0
    connections: int = 1000


class _Phase(Enum):
    OPENED = auto()  # no byte of the first request yet
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()  # the last request was received whole and waits for its answer
    IDLE = auto()  # kept alive between two requests
    CLOSING = auto()


class LimitedHttp(HttpToolsProtocol):
    """HTTP connection that answers 431, 413 or 408 beyond a limit, or closes if an answer is no longer possible.

    A request that was received whole is always answered, unless the caller does not read. At the bound of connections
    a new one replaces the one that is idle for longest. Idle means that no complete head waits for its answer, or that
    the answer is not read; so slow heads and connections that never send are replaced too. Only if none is idle is the
    new connection closed.

    The application's `send` returns when the network has taken what was sent, all but a few KiB, or the connection has
    ended. So a request ends when its answer has left the process.
    """

    limits: ClassVar[HttpLimits] = HttpLimits()

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  uvicorn's
        super().__init__(*arguments, **options)
        self._idle = _idle_connections.setdefault(self.server_state, OrderedDict())
        self._metrics: WireMetrics | None = self.app_state.get("wire")
        self._drain: Drain | None = self.app_state.get("drain")
        self._timer: asyncio.TimerHandle | None = None
        self._phase, self._since = _Phase.OPENED, self.loop.time()
        self._begun = self._answered = 0  # requests with a complete head, and answers
        self._request_bytes = 0
        self._unread_since: float | None = None
        self._is_refused = False

    # --- Events of the connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES, low=0)
        self._timer = self.loop.call_later(self.limits.tick_seconds, self._tick)
        if self._metrics is not None:
            self._metrics.opened()
        self._idle[self] = None
        if len(self.connections) > _most_connections(self.limits.connections):
            # by age alone: if connections without a request went first, the next newcomer would replace this one
            longest_idle, _ = self._idle.popitem(last=False)  # this connection, if no other is idle
            longest_idle.abort("shed")  # the metric's label for: replaced by a newcomer

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._idle.pop(self, None)
        self._unset_keepalive_if_required()  # uvicorn does not, if the connection broke
        super().connection_lost(exc)
        if self._metrics is not None:
            self._metrics.closed()

    def data_received(self, data: bytes) -> None:
        """Parse in slices: a read may hold several requests, and the count of bytes is exact to one slice."""
        for start in range(0, len(data), _SLICE_BYTES):
            if self._is_refused or self.transport.is_closing():
                return
            piece = data[start : start + _SLICE_BYTES]
            self._request_bytes += len(piece)
            super().data_received(piece)
            if self._phase is _Phase.HEAD and self._request_bytes > self.limits.head_bytes:
                self._refuse(_HEAD_TOO_LARGE)
            elif self._phase is _Phase.BODY and self._request_bytes > self.limits.request_bytes:
                self._refuse(_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        del msg
        self._refuse(_BAD_REQUEST)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self._unread_since or self.loop.time()
        self._update_idle()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update_idle()

    # --- Events of a request.

    def on_message_begin(self) -> None:
        self._enter(_Phase.HEAD)
        self._request_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is not _Phase.HEAD:
            return  # drops trailers, which come after the application has authorised the request
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Start the request, or raise to stop the parser, which uvicorn turns into `send_400_response`."""
        if self._request_bytes + _SLICE_BYTES > self.limits.head_bytes and self._head_bytes() > self.limits.head_bytes:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._begun - self._answered > self.limits.pipelined:
            self._refuse(_TOO_LARGE)
        if self._is_refused:
            raise ValueError("the request is refused")
        self._begin_request()
        self._begun += 1
        self._enter(_Phase.BODY)
        self._update_idle()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _begin_request(self) -> None:
        """Complete the ASGI scope and run the application, or queue the request behind the one in progress.

        As uvicorn does it, for an application at the root and without WebSockets. Raises if the target has no path
        (CONNECT, or an absolute form without one), and if a request to upgrade has a body: the parser would take that
        body for the next request.
        """
        scope, parser, version = self.scope, self.parser, self.parser.get_http_version()
        upgrades = parser.should_upgrade()
        if upgrades and any(name in _BODY_HEADERS for name, _ in self.headers):
            raise ValueError("a request to upgrade the connection has a body")
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        scope["http_version"] = version
        scope["method"] = parser.get_method().decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = target.path
        scope["query_string"] = target.query or b""
        before: RequestResponseCycle | None = self.cycle
        self.cycle = _Answer(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive() and not upgrades and not self._is_draining,
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_message_complete(self) -> None:
        self._enter(_Phase.ANSWER if self._begun > self._answered else _Phase.IDLE)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._answered += 1
        all_answered = self._begun == self._answered
        self._update_idle()
        # a request behind the answered one gets its full time, because reading may have been paused
        self._enter(_Phase.IDLE if self._phase is _Phase.ANSWER and all_answered else self._phase)
        self.server_state.total_requests += 1
        if not self.transport.is_closing():  # then as uvicorn does it, without its timer: `_tick` ends idle connections
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
        if self._is_refused and not self._is_serving:
            self.transport.close()

    # --- Bounds.

    @property
    def _is_serving(self) -> bool:
        """Whether a request that was received whole waits for its answer."""
        return self._begun - self._answered > (1 if self._phase is _Phase.BODY else 0)

    @property
    def _is_draining(self) -> bool:
        return self._drain is not None and self._drain.started

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._since = phase, self.loop.time()

    def _update_idle(self) -> None:
        unanswered, paused = self._begun > self._answered, self.flow.write_paused
        if unanswered and not paused:
            self._idle.pop(self, None)
        else:
            self._idle.setdefault(self)
        if not unanswered and not paused:
            self._unread_since = None

    def _tick(self) -> None:
        self._timer = self.loop.call_later(self.limits.tick_seconds, self._tick)
        now = self.loop.time()
        if self.transport.is_closing():
            if self._phase is not _Phase.CLOSING:
                self._enter(_Phase.CLOSING)
            elif now - self._since > self.limits.closing_seconds:
                self.abort()
        elif self._unread_since is not None and now - self._unread_since > self.limits.unread_seconds:
            self.abort("unread")
        elif not self._is_serving:
            self._end_if_due(now - self._since)

    def _end_if_due(self, waited: float) -> None:
        phase, limits = self._phase, self.limits
        if phase is _Phase.OPENED and waited > limits.head_seconds:
            self._report("too_slow")
            self.transport.close()  # no answer: the caller could take it for the answer to its next request
        elif phase is _Phase.IDLE and waited > limits.idle_seconds:
            self.transport.close()
        elif (phase is _Phase.HEAD and waited > limits.head_seconds) or (
            phase is _Phase.BODY and waited > limits.body_seconds
        ):
            self._refuse(_TOO_SLOW)

    def _refuse(self, status: bytes) -> None:
        """Read nothing more, answer with `status` if no other answer has begun, and close after the answers due."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._report(_REASONS.get(status))
        if self._is_serving:
            return  # on_response_complete closes
        if self._phase is not _Phase.BODY or not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 " + status + _HEADERS + _END)
        self.transport.close()

    def abort(self, reason: str | None = None) -> None:
        self._report(reason)
        self.transport.abort()

    def _report(self, reason: str | None) -> None:
        if self._metrics is not None and reason is not None:
            self._metrics.refused(reason)


class _Answer(RequestResponseCycle):
    """uvicorn's cycle of one request and its answer, with a `send` that waits for the network.

    The body goes in pieces, because over TLS only the second write waits for the first.
    """

    async def send(self, message: Any) -> None:  # noqa: ANN401  ASGI's
        if self.disconnected:
            return
        if not self.response_started:
            await self._send_head(message)
            return
        body = message.get("body", b"")
        last = max(len(body) - 1, 0) // _PIECE_BYTES * _PIECE_BYTES
        for start in range(0, last, _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            await super().send({"type": message["type"], "body": piece, "more_body": True})
            await self.flow.drain()
        await super().send(message | {"body": body[last:]} if last else message)
        if self.flow.write_paused:
            await self.flow.drain()

    async def _send_head(self, message: Any) -> None:  # noqa: ANN401  ASGI's
        """Write the head of an answer whose length is known; uvicorn writes any other.

        uvicorn looks for forbidden characters in each name and value, this in all of them together.
        """
        headers = [*self.default_headers, *message["headers"]]
        lengths = [value for name, value in headers if name == b"content-length"]
        names = b"".join([name for name, _ in headers]).lower()
        unusual = b"connection" in names or b"transfer-encoding" in names
        if len(lengths) != 1 or unusual or self.flow.write_paused:
            await super().send(message)
            return
        if HEADER_RE.search(names) or HEADER_VALUE_RE.search(b"".join([value for _, value in headers])):
            raise RuntimeError("a header of the answer has forbidden characters")
        self.response_started, self.waiting_for_100_continue, self.chunked_encoding = True, False, False
        self.expected_content_length = int(lengths[0])
        head = [b"%b: %b\r\n" % header for header in headers]
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join([STATUS_LINE[message["status"]], *head, end]))


# by server, the connections that are idle, longest first
_idle_connections: Final[WeakKeyDictionary[ServerState, OrderedDict[LimitedHttp, None]]] = WeakKeyDictionary()


def _most_connections(wanted: int) -> int:
    """Return `wanted`, or less if the process may not open that many files."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, descriptors - min(_RESERVED_DESCRIPTORS, descriptors // 2)))
