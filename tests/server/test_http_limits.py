"""`LimitedHttp` over real connections."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.process.certificates import tls_contexts
from tests.support.server.echo_vault import (
    CLOSE,
    HANG_SECONDS,
    HEAD,
    LAST,
    LIMITS,
    SMALL,
    Connection,
    EchoVault,
    close,
    echo_vault,
    echoes,
    read_answer,
    until,
    until_closed,
)

# --- Well-formed requests.

CHUNKED = HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;ext=1\r\ni\r\n0\r\nX-Trailer: 1\r\n\r\n"
WELL_FORMED = {
    "length": LAST,
    "chunks with a trailer": CHUNKED,
    "pipelined": SMALL + SMALL + LAST,
    "blank lines first": b"\r\n\r\n" + LAST,
    "100-continue": HEAD + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
}


@pytest.mark.parametrize("name", WELL_FORMED)
async def test_a_request_split_at_every_byte_is_the_same_request(name: str) -> None:
    request = WELL_FORMED[name]
    async with echo_vault() as vault:
        whole = echoes(await vault.answer_to(request))
        assert [echo["body"] for echo in whole] == ["hi"] * (3 if name == "pipelined" else 1)
        halves = [vault.answer_to(request[:at], request[at:], pause=0.02) for at in range(1, len(request))]
        for answer in await asyncio.gather(*halves):
            assert echoes(answer) == whole
        bytewise = (request[at : at + 1] for at in range(len(request)))
        assert echoes(await vault.answer_to(*bytewise)) == whole


async def test_100_continue_is_sent_before_the_body_arrives() -> None:
    async with echo_vault() as vault:
        reader, writer = await vault.connect()
        writer.write(HEAD + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"hi")
        assert len(echoes(await until_closed(reader, writer))) == 1


async def test_a_folded_header_is_refused_or_one_value() -> None:
    """RFC 9112, section 5.2, leaves a server the choice; it must never become two headers."""
    async with echo_vault() as vault:
        answer = await vault.answer_to(HEAD + CLOSE + b"X-Long: a\r\n Authorization: b\r\nContent-Length: 2\r\n\r\nhi")
    if not answer.startswith(b"HTTP/1.1 400"):
        [echo] = echoes(answer)
        assert "authorization" not in dict(echo["headers"])


async def test_a_trailer_is_no_header() -> None:
    async with echo_vault() as vault:
        await vault.answer_to(CHUNKED)
        assert [name for name, _ in vault.seen[0]["headers"]] == ["host", "connection", "transfer-encoding"]


async def test_a_kept_alive_connection_carries_many_requests() -> None:
    async with echo_vault() as vault:
        reader, writer = await vault.connect()
        for _ in range(200):
            writer.write(SMALL)
            await read_answer(reader)
        writer.close()


# --- Pipelining.


async def test_pipelined_bodies_that_look_like_heads_are_bodies() -> None:
    body = b"GET / HTTP/1.1\r\n\r\n" * 3 + b"\r\n\r\n"
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with echo_vault() as vault:
        answered = echoes(await vault.answer_to(request * 2 + LAST))
    assert [echo["body"] for echo in answered] == [body.decode()] * 2 + ["hi"]


# requests that the parser accepts and uvicorn cannot serve: their targets have no path
ABSOLUTE_FORM = b"GET http://vault HTTP/1.1\r\nHost: vault\r\n\r\n"
CONNECT = b"CONNECT vault:443 HTTP/1.1\r\nHost: vault\r\n\r\n"


@pytest.mark.parametrize(
    "behind",
    [b"", b"GET / HTTP/1.1\r\nX:", b"no HTTP at all\r\n\r\n", ABSOLUTE_FORM, CONNECT],
    ids=["none", "head", "junk", "absolute form", "CONNECT"],
)
async def test_too_many_pipelined_requests_end_the_connection_after_its_answers(behind: bytes) -> None:
    async with echo_vault() as vault:
        numbered = [b"GET /%d HTTP/1.1\r\nHost: vault\r\n\r\n" % number for number in range(5_000)]
        answered = echoes(await vault.answer_to(b"".join(numbered) + behind))
        begun = 1 + LIMITS.pipelined
        assert [echo["path"] for echo in answered] == [f"/{number}" for number in range(begun)]
        assert len(vault.seen) == begun


@pytest.mark.parametrize(
    "malformed", [b"no HTTP at all\r\n\r\n", ABSOLUTE_FORM, CONNECT], ids=["junk", "absolute form", "CONNECT"]
)
async def test_a_malformed_request_ends_the_connection_after_earlier_answers(malformed: bytes) -> None:
    async with echo_vault() as vault:
        assert len(echoes(await vault.answer_to(SMALL + malformed))) == 1
        await until(lambda: not vault.protocols)


@pytest.mark.parametrize("before", [b"", SMALL], ids=["first request", "kept alive"])
@pytest.mark.parametrize("target", [ABSOLUTE_FORM, CONNECT], ids=["absolute form", "CONNECT"])
async def test_a_target_without_a_path_is_400(target: bytes, before: bytes) -> None:
    loop_errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
    async with echo_vault() as vault:
        reader, writer = await vault.connect()
        if before:
            writer.write(before)
            await read_answer(reader)
        writer.write(target)
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
    assert loop_errors == []


# --- Bounds on size.


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1500,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000,
    ],
    ids=["long value", "long path", "many headers", "no end"],
)
@pytest.mark.parametrize("before", [b"", SMALL], ids=["first request", "second request"])
async def test_a_large_head_is_431_and_never_reaches_the_application(head: bytes, before: bytes) -> None:
    async with echo_vault() as vault:
        reader, writer = await vault.connect()
        if before:
            writer.write(before)
            await read_answer(reader)
        writer.write(head)
        answer = await until_closed(reader, writer)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert vault.refused() == {"head_too_large": 1}
        assert b"x-content-type-options: nosniff" in answer
        assert len(vault.seen) == (1 if before else 0)


async def test_a_head_just_below_the_limit_passes_behind_a_large_body() -> None:
    """Both come in one read."""
    head = HEAD + CLOSE + b"X: " + b"a" * 3900 + b"\r\nContent-Length: 2\r\n\r\nhi"
    large = HEAD + b"Content-Length: 60000\r\n\r\n" + b"b" * 60_000
    async with echo_vault() as vault:
        assert len(echoes(await vault.answer_to(large + head))) == 2


@pytest.mark.parametrize("reads", [True, False], ids=["read by the application", "answered before"])
@pytest.mark.parametrize("framing", ["length", "chunks", "trailers", "extension"])
async def test_a_hundred_megabytes_are_not_taken_in(framing: str, *, reads: bool) -> None:
    start, piece = {
        "length": (b"Content-Length: 100000000\r\n\r\n", b"b" * 10_000),
        "chunks": (b"Transfer-Encoding: chunked\r\n\r\n", b"2710\r\n" + b"b" * 10_000 + b"\r\n"),
        "trailers": (b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: " + b"y" * 1000 + b"\r\n"),
        "extension": (b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 1000),
    }[framing]
    async with echo_vault(reads=reads) as vault:
        reader, writer = await vault.connect()
        writer.write(HEAD + start)
        sent = 0
        with suppress(ConnectionError):
            async with asyncio.timeout(HANG_SECONDS):
                while sent < 100_000_000:
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
        assert sent < 20_000_000, "more than the kernels of both sides buffer"
        await until_closed(reader, writer)
        await until(lambda: not vault.protocols)
        assert vault.refused() == {"body_too_large": 1}


# --- Bounds on time.


async def test_a_head_that_never_ends_is_408() -> None:
    async with echo_vault(replace(LIMITS, head_seconds=0.3)) as vault:
        answer = await vault.answer_to(*(HEAD[at : at + 1] for at in range(len(HEAD))), pause=0.05)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert vault.seen == []
        assert vault.refused() == {"too_slow": 1}


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "blank lines"])
async def test_a_connection_without_a_request_is_closed_without_an_answer(sent: bytes) -> None:
    async with echo_vault(replace(LIMITS, head_seconds=0.3)) as vault:
        assert await vault.answer_to(sent, sent, sent, pause=0.2) == b""


@pytest.mark.parametrize(
    "body", [b"Content-Length: 9\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n2\r\nh"], ids=["length", "chunks"]
)
async def test_a_body_that_never_ends_is_408(body: bytes) -> None:
    async with echo_vault(replace(LIMITS, body_seconds=0.3)) as vault:
        assert (await vault.answer_to(HEAD + body)).startswith(b"HTTP/1.1 408 ")
        assert vault.seen == []


async def test_a_body_that_never_ends_after_its_answer_closes_the_connection() -> None:
    async with echo_vault(replace(LIMITS, body_seconds=0.3), reads=False) as vault:
        assert len(echoes(await vault.answer_to(HEAD + b"Content-Length: 9\r\n\r\nhi"))) == 1


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "blank lines"])
async def test_an_idle_connection_is_closed_despite_blank_lines(sent: bytes) -> None:
    """uvicorn stops its own timer at the first byte of anything."""
    async with echo_vault(replace(LIMITS, idle_seconds=0.5)) as vault:
        assert len(echoes(await vault.answer_to(SMALL, *[sent] * 8, pause=0.2))) == 1


@pytest.mark.parametrize("size", [b"large", b"huge"])
async def test_an_unread_answer_is_dropped_and_ends_its_request(size: bytes) -> None:
    async with echo_vault(replace(LIMITS, unread_seconds=0.3)) as vault:
        _, writer = await vault.connect()
        writer.write(b"GET /%s HTTP/1.1\r\nHost: vault\r\n\r\n" % size)
        await until(lambda: vault.refused() == {"unread": 1})
        await until(lambda: not vault.requests)
        await until(lambda: not vault.protocols)
        writer.close()


@pytest.mark.parametrize("secure", [False, True])
async def test_a_request_lasts_until_its_answer_has_left_the_process(tmp_path: Path, *, secure: bool) -> None:
    """The answer has 60 MB, more than the buffers of the network hold."""
    callers, vaults = tls_contexts(tmp_path) if secure else (None, None)
    async with echo_vault(tls=vaults) as vault:
        reader, writer = await vault.connect(callers)
        writer.write(b"GET /huge HTTP/1.1\r\nHost: vault\r\n\r\n")
        await until(lambda: any(protocol.flow.write_paused for protocol in vault.protocols))
        assert len(vault.requests) == 1
        received = 0
        while vault.requests:
            received += len(await reader.read(65536))
        assert received > 20_000_000
        writer.transport.abort()
        await until(lambda: not vault.protocols)


async def test_reading_a_little_gives_no_more_time_for_an_answer() -> None:
    """The whole answer would take a thousand times `unread_seconds`."""
    async with echo_vault(replace(LIMITS, unread_seconds=0.3)) as vault:
        reader, writer = await vault.connect()
        writer.write(b"GET /pieces HTTP/1.1\r\nHost: vault\r\n\r\n")
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for _ in range(250):
                await reader.readexactly(400_000)  # enough for the vault to write again
                await asyncio.sleep(0.1)
            pytest.fail("the answer was sent to its end")
        await until(lambda: not vault.protocols)
        writer.close()


async def test_a_large_answer_that_is_read_leaves_the_connection_alive() -> None:
    async with echo_vault(replace(LIMITS, unread_seconds=0.5)) as vault:
        reader, writer = await vault.connect()
        writer.write(b"GET /large HTTP/1.1\r\nHost: vault\r\n\r\n")
        assert len(await read_answer(reader)) == 8_000_000
        await asyncio.sleep(1)
        writer.write(SMALL)
        assert await read_answer(reader)
        writer.close()


async def test_an_answer_to_a_caller_that_has_left_is_dropped_quietly() -> None:
    async with echo_vault() as vault:
        vault.may_answer.clear()
        _, writer = await vault.connect()
        writer.write(SMALL)
        await until(lambda: len(vault.requests) == 1)
        [request] = vault.requests
        writer.transport.abort()
        await until(lambda: not vault.protocols)
        vault.may_answer.set()
        await until(request.done)
    assert vault.failures == []


@pytest.mark.parametrize("length", [b"Content-Length: %d\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n"])
async def test_the_body_of_a_request_to_upgrade_is_no_request(length: bytes) -> None:
    """The parser does not read such a body, which a proxy may pass on from another caller."""
    inner = b"GET /smuggled HTTP/1.1\r\nHost: vault\r\n\r\n"
    head = HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + length % len(inner)
    async with echo_vault() as vault:
        assert (await vault.answer_to(head, inner, pause=0.05)).startswith(b"HTTP/1.1 400 ")
        assert vault.seen == []


async def test_a_request_to_upgrade_without_a_body_is_answered_and_ends_the_connection() -> None:
    async with echo_vault() as vault:
        head = HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        assert len(echoes(await vault.answer_to(head + SMALL))) == 1


async def test_no_limit_of_time_ends_a_request_that_was_received_whole() -> None:
    limits = replace(LIMITS, head_seconds=0.1, body_seconds=0.1, idle_seconds=0.1, unread_seconds=0.1)
    async with echo_vault(limits) as vault:
        vault.may_answer.clear()
        answer = asyncio.create_task(vault.answer_to(SMALL + HEAD))  # the second head never ends
        await until(lambda: len(vault.seen) == 1)
        await asyncio.sleep(0.5)
        vault.may_answer.set()
        first, refused, _ = (await answer).partition(b"HTTP/1.1 408 ")
        assert len(echoes(first)) == 1
        assert refused


# --- The bound on the number of connections.

FEW = replace(LIMITS, connections=8)
FILLED_WITH = {
    "nothing sent": b"",
    "unfinished heads": HEAD,
    "answered and idle": SMALL,
    "answered before the body ends": HEAD + b"Content-Length: 9\r\n\r\nhi",
    "unread answers": b"GET /pieces HTTP/1.1\r\nHost: vault\r\n\r\n",
}


@pytest.mark.parametrize("sent", FILLED_WITH.values(), ids=FILLED_WITH)
async def test_every_newcomer_is_served_at_the_bound_of_connections(sent: bytes) -> None:
    async with echo_vault(FEW, reads=False) as vault:
        others = [await _connect(vault, sent) for _ in range(FEW.connections)]
        for newcomers in range(1, 16):
            assert len(echoes(await vault.answer_to(LAST))) == 1
            assert vault.refused() == {"shed": newcomers}
            await until(lambda: len(vault.protocols) == FEW.connections - 1)
            others.append(await _connect(vault, sent))
        close(others)


async def test_the_connection_that_is_idle_for_longest_is_replaced() -> None:
    async with echo_vault(FEW) as vault:
        others = [await _connect(vault, SMALL) for _ in range(FEW.connections)]
        (first_reader, first_writer), (second_reader, _) = others[:2]
        first_writer.write(SMALL)  # now the second one is idle for longest
        await read_answer(first_reader)
        assert len(echoes(await vault.answer_to(LAST))) == 1
        assert await second_reader.read() == b""
        for reader, writer in (others[0], *others[2:]):
            writer.write(SMALL)
            await read_answer(reader)
        close(others)


async def test_newcomers_do_not_replace_each_other_before_idle_connections() -> None:
    """They connect before any of them sends, so a stranger's answered connections do not outlast them."""
    async with echo_vault(FEW) as vault:
        others = [await _connect(vault, SMALL) for _ in range(FEW.connections)]
        newcomers = [await _connect(vault, b"") for _ in range(FEW.connections)]
        for reader, writer in newcomers:
            writer.write(SMALL)
            await read_answer(reader)
        assert [await reader.read() for reader, _ in others] == [b""] * FEW.connections
        close(others + newcomers)


async def test_requests_in_progress_are_not_replaced() -> None:
    async with echo_vault(FEW) as vault:
        vault.may_answer.clear()
        served = [asyncio.create_task(vault.answer_to(LAST)) for _ in range(FEW.connections - 2)]
        await until(lambda: len(vault.seen) == len(served))
        flood = [await vault.connect() for _ in range(30)]
        await until(lambda: sum(vault.refused().values()) == 28)
        vault.may_answer.set()
        for answer in await asyncio.gather(*served):
            assert len(echoes(answer)) == 1
        close(flood)


async def test_a_newcomer_is_closed_only_if_no_connection_is_idle() -> None:
    async with echo_vault(FEW) as vault:
        vault.may_answer.clear()
        served = [asyncio.create_task(vault.answer_to(LAST)) for _ in range(FEW.connections)]
        await until(lambda: len(vault.seen) == len(served))
        assert await vault.answer_to(b"") == b""
        assert vault.refused() == {"shed": 1}
        vault.may_answer.set()
        assert [len(echoes(answer)) for answer in await asyncio.gather(*served)] == [1] * FEW.connections


async def _connect(vault: EchoVault, sent: bytes) -> Connection:
    """Connect, send, and wait until the vault has done all that this connection lets it do."""
    known = set(vault.protocols)
    reader, writer = await vault.connect()
    writer.write(sent)
    if b"hi" in sent:
        await read_answer(reader)
    await until(lambda: bool(vault.protocols - known))
    [protocol] = vault.protocols - known
    await until(lambda: sent != HEAD or protocol.headers is not None)
    if b"/pieces" in sent:
        await until(lambda: bool(protocol.flow.write_paused))
    return reader, writer
