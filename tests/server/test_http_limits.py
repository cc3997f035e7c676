"""The protocol in front of the application, over real connections and with limits of a fraction of a second."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.observability.metrics.registry import VaultMetrics
from app.server.http_limits import LimitedHttp
from app.server.wire_limits import WireLimits
from tests.support.stack.loopback import LOOPBACK

HEAD = b"POST /echo HTTP/1.1\r\nHost: vault\r\n"
SMALL = HEAD + b"Content-Length: 2\r\n\r\nhi"
RETRY_SECONDS = 6.0
LIMITS = WireLimits(
    head_bytes=4096,
    request_bytes=100_000,
    head_seconds=0.5,
    request_seconds=0.6,
    unread_seconds=0.5,
    idle_seconds=0.8,
    closing_seconds=0.5,
    tick_seconds=0.05,
    connections=8,
)


@dataclass(slots=True)
class Vault:
    """An application behind the protocol: it echoes each request as it saw it."""

    port: int
    protocols: set[Any]
    metrics: VaultMetrics
    seen: list[dict[str, Any]] = field(default_factory=list)

    def refused(self) -> dict[str, float]:
        """Return by reason what was refused below any request."""
        samples = [one for family in self.metrics.registry.collect() for one in family.samples]
        counts = [one for one in samples if one.name == "token_vault_refused_total" and one.value]
        return {one.labels["reason"]: one.value for one in counts}

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(LOOPBACK, self.port)

    async def answer_to(self, *parts: bytes, pause: float = 0) -> bytes:
        """Send the parts and return everything until the other side closes."""
        reader, writer = await self.connect()
        heard = asyncio.create_task(_until_closed(reader, writer))
        for part in parts:
            if not heard.done():
                writer.write(part)
                await asyncio.sleep(pause)
        return await heard


async def _until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    heard = b""
    try:
        async with asyncio.timeout(RETRY_SECONDS):
            while chunk := await reader.read(65536):
                heard += chunk
    except ConnectionError:
        pass
    finally:
        writer.close()
    return heard


@asynccontextmanager
async def _vault(limits: WireLimits = LIMITS, *, slow: float = 0.0, reads: bool = True) -> AsyncIterator[Vault]:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        body, more = b"", reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
        request = {"path": scope["path"], "method": scope["method"], "headers": headers, "body": body.decode()}
        seen.append(request)
        await asyncio.sleep(slow)
        answer = json.dumps(request).encode() if scope["path"] != "/large" else b"." * 8_000_000
        length = [] if scope["path"] == "/pieces" else [(b"content-length", b"%d" % len(answer))]
        head = {"type": "http.response.start", "status": 200, "headers": length}
        await send(head)
        if scope["path"] == "/pieces":
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"." * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": answer})

    class Hasty(LimitedHttp):
        pass

    Hasty.limits = limits
    config = uvicorn.Config(app, log_config=None, http=Hasty, ws="none", timeout_keep_alive=75)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    metrics = VaultMetrics()
    told = {"wire": metrics.wire}
    server = await loop.create_server(lambda: Hasty(config, state, told), LOOPBACK, 0)
    try:
        yield Vault(server.sockets[0].getsockname()[1], state.connections, metrics, seen)
    finally:
        server.close()
        for protocol in list(state.connections):
            protocol.transport.abort()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await asyncio.sleep(0)


def _echoes(answer: bytes) -> list[dict[str, Any]]:
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 100")), head
        if head.startswith(b"HTTP/1.1 100"):
            answer = rest
            continue
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append(json.loads(rest[:length]))
        answer = rest[length:]
    return found


# --- what is well-formed works


CLOSE = b"Connection: close\r\n"
CHUNKED = HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;ext=1\r\ni\r\n0\r\nX-Trailer: 1\r\n\r\n"
WELL_FORMED = {
    "a length": HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi",
    "chunks, with a trailer": CHUNKED,
    "pipelined": SMALL + SMALL + HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi",
    "blank lines first": b"\r\n\r\n" + HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi",
    "100-continue": HEAD + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
}


@pytest.mark.parametrize("name", WELL_FORMED)
async def test_a_request_split_at_every_byte_is_the_same_request(name: str) -> None:
    request = WELL_FORMED[name]
    async with _vault(replace(LIMITS, connections=1000)) as vault:
        whole = _echoes(await vault.answer_to(request))
        assert [echo["body"] for echo in whole] == ["hi"] * (3 if name == "pipelined" else 1)
        halves = [vault.answer_to(request[:at], request[at:], pause=0.02) for at in range(1, len(request))]
        for answer in await asyncio.gather(*halves):
            assert _echoes(answer) == whole
        bytewise = (request[at : at + 1] for at in range(len(request)))
        assert _echoes(await vault.answer_to(*bytewise)) == whole


async def test_the_caller_that_expects_100_continue_gets_it_before_its_body() -> None:
    async with _vault() as vault:
        reader, writer = await vault.connect()
        writer.write(HEAD + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"hi")
        assert len(_echoes(await _until_closed(reader, writer))) == 1


async def test_a_folded_header_is_refused_or_is_one_value_and_never_two_headers() -> None:
    """RFC 9112, section 5.2, leaves a server the choice."""
    async with _vault() as vault:
        answer = await vault.answer_to(HEAD + CLOSE + b"X-Long: a\r\n Authorization: b\r\nContent-Length: 2\r\n\r\nhi")
    if not answer.startswith(b"HTTP/1.1 400"):
        [echo] = _echoes(answer)
        assert "authorization" not in dict(echo["headers"])


async def test_a_trailer_is_no_header() -> None:
    async with _vault() as vault:
        await vault.answer_to(CHUNKED)
        await asyncio.sleep(0.05)
        assert [name for name, _ in vault.seen[0]["headers"]] == ["host", "connection", "transfer-encoding"]


async def test_a_kept_alive_connection_carries_many_requests() -> None:
    async with _vault() as vault:
        reader, writer = await vault.connect()
        for _ in range(200):
            writer.write(SMALL)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.close()


# --- what is too large


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1500,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000,
    ],
    ids=["a long value", "a long path", "many headers", "no end"],
)
@pytest.mark.parametrize("before", [b"", SMALL], ids=["at first", "later"])
async def test_a_large_head_is_431_and_nothing_is_asked_of_the_application(head: bytes, before: bytes) -> None:
    async with _vault() as vault:
        reader, writer = await vault.connect()
        if before:
            writer.write(before)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.write(head)
        answer = await _until_closed(reader, writer)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert vault.refused() == {"head_too_large": 1}
        assert b"x-content-type-options: nosniff" in answer
        assert len(vault.seen) == (1 if before else 0)


async def test_a_head_just_below_the_limit_passes_after_a_large_body_in_the_same_read() -> None:
    head = HEAD + CLOSE + b"X: " + b"a" * 3900 + b"\r\nContent-Length: 2\r\n\r\nhi"
    large = HEAD + b"Content-Length: 60000\r\n\r\n" + b"b" * 60_000
    async with _vault() as vault:
        assert len(_echoes(await vault.answer_to(large + head))) == 2


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("framing", ["length", "chunks", "trailers", "extension"])
async def test_a_hundred_megabytes_are_not_taken_in(framing: str, *, reads: bool) -> None:
    start, piece = {
        "length": (b"Content-Length: 100000000\r\n\r\n", b"b" * 10_000),
        "chunks": (b"Transfer-Encoding: chunked\r\n\r\n", b"2710\r\n" + b"b" * 10_000 + b"\r\n"),
        "trailers": (b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: " + b"y" * 1000 + b"\r\n"),
        "extension": (b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 1000),
    }[framing]
    async with _vault(reads=reads) as vault:
        reader, writer = await vault.connect()
        writer.write(HEAD + start)
        sent = 0
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                while sent < 100_000_000:
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
        except ConnectionError:
            pass
        assert sent < 20_000_000, "what the kernels of both sides hold"
        await _until_closed(reader, writer)
        assert not vault.protocols
        assert sum(vault.refused().values()) == 1


async def test_pipelined_requests_wait_unread_and_each_is_answered_in_order() -> None:
    """A read holds all of them, so what is not begun is what the protocol has kept back by itself."""
    async with _vault(slow=0.02) as vault:
        numbered = [b"GET /%d HTTP/1.1\r\nHost: vault\r\n\r\n" % number for number in range(40)]
        answered = asyncio.create_task(vault.answer_to(*numbered, HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi"))
        waiting = 0
        while not answered.done():
            waiting = max([waiting, *(len(protocol.pipeline) for protocol in vault.protocols)])
            await asyncio.sleep(0.001)
        assert [echo["path"] for echo in _echoes(answered.result())] == [
            *(f"/{number}" for number in range(40)),
            "/echo",
        ]
        assert waiting <= LIMITS.pipelined


async def test_pipelined_bodies_that_look_like_heads_are_bodies() -> None:
    body = b"GET / HTTP/1.1\r\n\r\n" * 3 + b"\r\n\r\n"
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with _vault() as vault:
        echoes = _echoes(await vault.answer_to(request * 5 + HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi"))
    assert [echo["body"] for echo in echoes] == [body.decode()] * 5 + ["hi"]


async def test_pipelining_without_end_is_cut_off_and_what_was_begun_is_answered() -> None:
    async with _vault(slow=0.05) as vault:
        answer = await vault.answer_to(SMALL * 5_000)
        assert 1 <= len(_echoes(answer)) == len(vault.seen) <= LIMITS.pipelined + 2


async def test_a_newcomer_is_served_between_the_requests_of_those_that_have_sent_ahead() -> None:
    async with _vault(replace(LIMITS, connections=100)) as vault:
        flood = [await vault.connect() for _ in range(60)]
        for _, writer in flood:
            writer.write(b"GET /flood HTTP/1.1\r\nHost: vault\r\n\r\n" * 100)
        await vault.answer_to(HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi")
        before = [request["path"] for request in vault.seen].index("/echo")
        assert before < 60 * 100 / 10
        _close(flood)


# --- what is too slow


async def test_a_head_that_never_ends_is_408() -> None:
    async with _vault() as vault:
        answer = await vault.answer_to(*(HEAD[at : at + 1] for at in range(len(HEAD))), pause=0.05)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert vault.seen == []
        assert vault.refused() == {"too_slow": 1}


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "blank lines"])
async def test_a_connection_without_a_request_is_closed_without_a_word(sent: bytes) -> None:
    async with _vault() as vault:
        assert await vault.answer_to(sent, sent, sent, pause=0.3) == b""


@pytest.mark.parametrize("body", [b"Content-Length: 9\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n2\r\nh"])
async def test_a_body_that_never_ends_is_408(body: bytes) -> None:
    async with _vault() as vault:
        assert (await vault.answer_to(HEAD + body)).startswith(b"HTTP/1.1 408 ")
        assert vault.seen == []


async def test_a_body_that_never_ends_after_its_answer_ends_the_connection() -> None:
    async with _vault(reads=False) as vault:
        assert len(_echoes(await vault.answer_to(HEAD + b"Content-Length: 9\r\n\r\nhi"))) == 1


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["silent", "blank lines"])
async def test_an_idle_connection_is_closed_whatever_is_no_request(sent: bytes) -> None:
    """uvicorn stops its own timer at the first byte of anything."""
    async with _vault() as vault:
        reader, writer = await vault.connect()
        writer.write(SMALL)
        heard = asyncio.create_task(_until_closed(reader, writer))
        for _ in range(8):
            await asyncio.sleep(0.2)
            writer.write(sent)
        assert len(_echoes(await heard)) == 1


async def test_an_answer_that_nobody_reads_is_thrown_away() -> None:
    async with _vault() as vault:
        _, writer = await vault.connect()
        writer.write(b"GET /large HTTP/1.1\r\nHost: vault\r\n\r\n")
        await asyncio.sleep(0.3)
        assert len(vault.protocols) == 1
        await asyncio.sleep(LIMITS.unread_seconds + 0.5)
        assert not vault.protocols
        assert vault.refused() == {"unread": 1}
        writer.close()


async def test_a_reader_that_stirs_now_and_then_gets_no_more_time_for_one_answer() -> None:
    async with _vault() as vault:
        reader, writer = await vault.connect()
        writer.write(b"GET /pieces HTTP/1.1\r\nHost: vault\r\n\r\n")
        began = asyncio.get_running_loop().time()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:  # as much as lets the other side write again, and far less than it has to say
                await reader.readexactly(400_000)
                await asyncio.sleep(LIMITS.unread_seconds / 5)
        assert asyncio.get_running_loop().time() - began < 4 * LIMITS.unread_seconds
        assert not vault.protocols
        writer.close()


async def test_a_slow_application_is_waited_for_past_every_limit() -> None:
    async with _vault(slow=1.5) as vault:
        answer = await vault.answer_to(SMALL + HEAD)  # and the head of a second one, which never ends
    first, refused, _ = answer.partition(b"HTTP/1.1 408 ")
    assert len(_echoes(first)) == 1
    assert refused


# --- too many


async def test_a_flood_of_idle_connections_sheds_its_own_and_a_caller_is_served() -> None:
    async with _vault() as vault:
        flood = [await vault.connect() for _ in range(30)]
        await asyncio.sleep(0.1)
        assert len(vault.protocols) == LIMITS.connections
        assert vault.refused() == {"shed": 30 - LIMITS.connections}
        for _ in range(3):
            assert len(_echoes(await vault.answer_to(HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi"))) == 1
        _close(flood)


async def test_requests_that_are_served_are_not_shed() -> None:
    async with _vault(slow=0.5) as vault:
        served = [asyncio.create_task(vault.answer_to(SMALL + CLOSE)) for _ in range(6)]
        await asyncio.sleep(0.2)
        flood = [await vault.connect() for _ in range(30)]
        for answer in await asyncio.gather(*served):
            assert answer.startswith(b"HTTP/1.1 200 ")
        _close(flood)


async def test_where_all_are_served_the_newcomer_is_shed() -> None:
    async with _vault(slow=0.5) as vault:
        served = [asyncio.create_task(vault.answer_to(SMALL + CLOSE)) for _ in range(LIMITS.connections)]
        await asyncio.sleep(0.2)
        assert await vault.answer_to(b"") == b""
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in await asyncio.gather(*served))


async def test_callers_that_do_not_read_are_shed_and_a_newcomer_is_served() -> None:
    """Their requests are here whole, and their answers wait for them."""
    async with _vault(replace(LIMITS, unread_seconds=60.0)) as vault:
        flood = [await vault.connect() for _ in range(LIMITS.connections)]
        for _, writer in flood:
            writer.write(b"GET /large HTTP/1.1\r\nHost: vault\r\n\r\n")
        await asyncio.sleep(0.3)
        assert all(protocol.flow.write_paused for protocol in vault.protocols)
        for _ in range(3):
            assert len(_echoes(await vault.answer_to(HEAD + CLOSE + b"Content-Length: 2\r\n\r\nhi"))) == 1
        _close(flood)


async def test_a_stranger_goes_before_a_caller_that_was_answered() -> None:
    async with _vault() as vault:
        reader, writer = await vault.connect()
        writer.write(SMALL)
        await reader.readuntil(b"\r\n\r\n")
        flood = [await vault.connect() for _ in range(30)]
        writer.write(SMALL)
        await reader.readuntil(b"\r\n\r\n")
        _close([*flood, (reader, writer)])


def _close(connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    for _, writer in connections:
        writer.close()


# --- uvicorn's side


def test_uvicorn_has_what_the_protocol_builds_on() -> None:
    """Each of these is called by uvicorn, its parser or its loop; one that is renamed would bound nothing."""
    own = {name for name, value in vars(LimitedHttp).items() if callable(value) and not name.startswith("_")}
    assert own - {"handshake_begun", "handshake_lost", "shed"} <= set(dir(HttpToolsProtocol))
    assert {"shutdown", "_unset_keepalive_if_required"} <= set(dir(HttpToolsProtocol))
