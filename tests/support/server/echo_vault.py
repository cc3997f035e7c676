"""An ASGI application behind `LimitedHttp`, on this process's event loop."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from app.observability.metrics.registry import VaultMetrics
from app.server.http_limits import HttpLimits, LimitedHttp
from tests.support.stack.loopback import LOOPBACK

HANG_SECONDS: Final = 30.0
# small in bytes and number, and so long in seconds that a busy machine exceeds none of them
LIMITS: Final = HttpLimits(
    head_bytes=4096,
    request_bytes=100_000,
    head_seconds=HANG_SECONDS,
    body_seconds=HANG_SECONDS,
    unread_seconds=HANG_SECONDS,
    idle_seconds=HANG_SECONDS,
    closing_seconds=HANG_SECONDS,
    tick_seconds=0.02,
    connections=1000,
)
HEAD: Final = b"POST /echo HTTP/1.1\r\nHost: vault\r\n"
CLOSE: Final = b"Connection: close\r\n"
SMALL: Final = HEAD + b"Content-Length: 2\r\n\r\nhi"
LAST: Final = HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi"
_WITHOUT_BODY: Final = frozenset({204, 304})
_AT_ONCE: Final = {"/large": 8_000_000, "/huge": 60_000_000}
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class EchoVault:
    """Echoes each request as the application saw it. `requests` are the tasks of those that have not ended.

    `/large` answers with 8 MB at once, `/huge` with 60 MB at once, `/pieces` with 100 MB in pieces. Answers wait until
    `may_answer` is set. With `reads=False` the application answers without reading the body. Answers have `headers`
    besides their length; those of the statuses 204 and 304 have neither length nor body. `failures` are what `send` has
    raised.
    """

    port: int
    protocols: set[Any]
    requests: set[Any]
    metrics: VaultMetrics
    reads: bool
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()
    seen: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def application(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        body, more = b"", self.reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
        request = {"path": scope["path"], "method": scope["method"], "headers": headers, "body": body.decode()}
        self.seen.append(request)
        await self.may_answer.wait()
        answer = b"." * _AT_ONCE[scope["path"]] if scope["path"] in _AT_ONCE else json.dumps(request).encode()
        answer = b"" if self.status in _WITHOUT_BODY else answer
        has_length = scope["path"] != "/pieces" and self.status not in _WITHOUT_BODY
        length = [(b"content-length", b"%d" % len(answer))] if has_length else []
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": [*length, *self.headers]})
            if scope["path"] == "/pieces":
                for _ in range(1000):
                    await send({"type": "http.response.body", "body": b"." * 100_000, "more_body": True})
            await send({"type": "http.response.body", "body": answer})
        except Exception as error:
            self.failures.append(error)
            raise

    def refused(self) -> dict[str, float]:
        """Return the number of refusals by reason."""
        samples = [one for family in self.metrics.registry.collect() for one in family.samples]
        counts = [one for one in samples if one.name == "token_vault_refused_total" and one.value]
        return {one.labels["reason"]: one.value for one in counts}

    async def connect(self, tls: ssl.SSLContext | None = None) -> Connection:
        return await asyncio.open_connection(LOOPBACK, self.port, ssl=tls)

    async def answer_to(self, *parts: bytes, pause: float = 0) -> bytes:
        """Send the parts and return everything until the vault closes the connection."""
        reader, writer = await self.connect()
        received = asyncio.create_task(until_closed(reader, writer))
        for part in parts:
            if not received.done():
                writer.write(part)
                await asyncio.sleep(pause)
        return await received


@asynccontextmanager
async def echo_vault(
    limits: HttpLimits = LIMITS,
    *,
    reads: bool = True,
    tls: ssl.SSLContext | None = None,
    status: int = 200,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> AsyncIterator[EchoVault]:
    class Limited(LimitedHttp):
        pass

    Limited.limits = limits
    state, metrics = ServerState(), VaultMetrics()
    vault = EchoVault(
        port=0,
        protocols=state.connections,
        requests=state.tasks,
        metrics=metrics,
        reads=reads,
        status=status,
        headers=headers,
    )
    vault.may_answer.set()
    config = uvicorn.Config(
        vault.application, log_config=None, http=Limited, ws="none", interface="asgi3", timeout_keep_alive=300
    )
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Limited(config, state, {"wire": metrics.wire}), LOOPBACK, 0, backlog=512, ssl=tls
    )
    vault.port = server.sockets[0].getsockname()[1]
    try:
        yield vault
    finally:
        vault.may_answer.set()
        server.close()
        for protocol in list(state.connections):
            protocol.transport.abort()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(HANG_SECONDS):
        while not holds():  # noqa: ASYNC110  the vault has no event for it
            await asyncio.sleep(0.005)


async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return everything until the vault closes the connection."""
    received = b""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while chunk := await reader.read(65536):
                received += chunk
    except ConnectionError:
        pass
    finally:
        writer.close()
    return received


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Return the body of one answer from a connection that stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return await reader.readexactly(_content_length(head))


def echoes(answer: bytes) -> list[dict[str, Any]]:
    """Parse all answers of one connection; each must be a 200, or a 100 before it."""
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 100")), head
        if head.startswith(b"HTTP/1.1 100"):
            answer = rest
            continue
        length = _content_length(head)
        found.append(json.loads(rest[:length]))
        answer = rest[length:]
    return found


def close(connections: list[Connection]) -> None:
    for _, writer in connections:
        writer.close()


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
