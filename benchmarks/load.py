"""The load generator: prebuilt requests over kept-alive connections, one at a time on each.

It costs little: a request is one write of existing bytes, and only the status and the length of an answer are read. One
process drives a server of fixed answers at more than ten times the rate of any figure in the table, and mostly waits
while it drives the vault. The run prints both below its table, so a client that is the bottleneck is visible.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import uvloop

LOOPBACK = "127.0.0.1"
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length: "
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Requests for one port. It ends after `seconds`, or with the last request unless `over_and_over`."""

    port: int
    requests: tuple[bytes, ...]
    connections: int
    seconds: float
    over_and_over: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a plan. `client_busy` is the client's share of one core."""

    seconds: float
    latencies: tuple[float, ...]
    client_busy: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


def drive(plan: Plan) -> Load:
    """Run the plan; raises `RuntimeError` for any answer but a 2xx."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(plan))


async def _drive(plan: Plan) -> Load:
    loop = asyncio.get_running_loop()
    requests = itertools.cycle(plan.requests) if plan.over_and_over else iter(plan.requests)

    def new_client() -> _Client:
        return _Client(requests, loop.create_future())

    async with asyncio.timeout(_CONNECT_SECONDS):
        clients = [(await loop.create_connection(new_client, LOOPBACK, plan.port))[1] for _ in range(plan.connections)]
    busy, start = time.process_time(), time.perf_counter()
    for client in clients:
        client.start(until=start + plan.seconds)
    async with asyncio.timeout(plan.seconds + _ANSWER_SECONDS):
        await asyncio.gather(*(client.ended for client in clients))
    seconds = time.perf_counter() - start
    busy = time.process_time() - busy
    latencies = tuple(itertools.chain.from_iterable(client.latencies for client in clients))
    return Load(seconds, latencies, busy / seconds)


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, requests: Iterator[bytes], ended: asyncio.Future[None]) -> None:
        self._requests = requests
        self.ended = ended
        self.latencies: list[float] = []
        self._answer = b""
        self._until = 0.0
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(RuntimeError(f"the server closed the connection: {exc}"))

    def start(self, *, until: float) -> None:
        self._until = until
        self._send(time.perf_counter())

    def data_received(self, data: bytes) -> None:
        answer = self._answer + data if self._answer else data
        head_end = answer.find(_HEAD_END)
        if head_end < 0 or len(answer) < head_end + len(_HEAD_END) + _content_length(answer, head_end):
            self._answer = answer
            return
        self._answer = b""
        now = time.perf_counter()
        self.latencies.append(now - self._sent)
        if answer[9:10] == b"2":
            self._send(now)
        elif not self.ended.done():
            self.ended.set_exception(RuntimeError(answer[:400].decode(errors="replace")))

    def _send(self, now: float) -> None:
        request = next(self._requests, None) if now < self._until else None
        if request is None:
            self._transport.close()
            if not self.ended.done():
                self.ended.set_result(None)
            return
        self._sent = now
        self._transport.write(request)


def _content_length(answer: bytes, head_end: int) -> int:
    at = answer.find(_LENGTH, 0, head_end)
    if at < 0:
        raise RuntimeError("an answer has no length")
    at += len(_LENGTH)
    return int(answer[at : answer.find(b"\r\n", at)])
