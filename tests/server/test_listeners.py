"""Listening sockets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

import pytest
import uvicorn
import uvloop

from app.server.listeners import bind
from tests.support.stack.loopback import LOOPBACK

NEWCOMERS = 64


@pytest.mark.parametrize(("workers", "turns"), [(1, 3), (2, 20)])
def test_a_burst_is_accepted_in_few_turns_of_the_loop(workers: int, turns: int) -> None:
    accepted = 0

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal accepted
            accepted += 1
            transport.close()

    async def burst() -> None:
        loop = asyncio.get_running_loop()
        sockets = bind(uvicorn.Config("", host=LOOPBACK, port=0, workers=workers, log_config=None), None)
        servers = [await loop.create_server(Accepted, sock=each) for each in sockets]
        with ExitStack() as opened:
            for _ in range(NEWCOMERS):
                opened.enter_context(socket.create_connection(sockets[0].getsockname()))
            for _ in range(turns):
                await asyncio.sleep(0)  # one turn
        for server in servers:
            server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(burst())
    assert accepted == NEWCOMERS
