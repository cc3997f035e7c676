"""The heads of answers, which `LimitedHttp` writes in place of uvicorn."""

from __future__ import annotations

import pytest

from tests.support.server.echo_vault import HEAD, LAST, SMALL, echo_vault, echoes, read_answer

Headers = list[tuple[bytes, bytes]]
FORBIDDEN: dict[str, Headers] = {
    "a line break in a value": [(b"x-a", b"1\r\nx-injected: 1")],
    "a line feed in a value": [(b"x-a", b"1\nx-injected: 1")],
    "an end of the head in a value": [(b"x-a", b"1\r\n\r\nx-injected: 1")],
    "a line break in a name": [(b"x-a: 1\r\nx-injected", b"1")],
    "a colon in a name": [(b"x-injected: 1", b"1")],
    "NUL in the last of several": [(b"x-a", b"1"), (b"x-injected", b"\0")],
}


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_a_forbidden_character_in_a_header_is_never_sent(name: str) -> None:
    async with echo_vault(headers=FORBIDDEN[name]) as vault:
        answer = await vault.answer_to(SMALL)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"injected" not in answer
    assert len(vault.failures) == 1


async def test_a_header_of_an_answer_arrives_unchanged() -> None:
    async with echo_vault(headers=[(b"x-a", b"1, \x09\xe9"), (b"x-b", b"")]) as vault:
        answer = await vault.answer_to(LAST)
    head = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert {b"x-a: 1, \x09\xe9", b"x-b: ", b"connection: close"} <= set(head)
    assert len(echoes(answer)) == 1


@pytest.mark.parametrize("name", [b"connection", b"Connection"])
async def test_an_answer_that_ends_its_connection_closes_it(name: bytes) -> None:
    async with echo_vault(headers=[(name, b"close")]) as vault:
        answer = await vault.answer_to(SMALL)
    assert answer.lower().count(b"connection: close") == 1
    assert len(echoes(answer)) == 1


async def test_the_answer_to_head_has_no_body_and_keeps_the_connection() -> None:
    async with echo_vault() as vault:
        reader, writer = await vault.connect()
        writer.write(HEAD.replace(b"POST", b"HEAD") + b"\r\n" + LAST)
        assert b"content-length: " in await reader.readuntil(b"\r\n\r\n")
        assert await read_answer(reader)
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_keeps_the_connection(status: int) -> None:
    async with echo_vault(status=status) as vault:
        answer = await vault.answer_to(SMALL + LAST)
    assert answer.count(b"HTTP/1.1 %d " % status) == 2
    assert answer.endswith(b"\r\n\r\n")
    assert b"transfer-encoding" not in answer
