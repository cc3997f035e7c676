"""The load generators: prebuilt requests over connections, one request at a time on each.

`drive` is a closed loop: each connection sends its next request when it has the answer. `drive_open` is an open loop:
requests are due at a constant rate, whether answers come or not, and the latency counts from the moment when a request
is due. A request that finds no idle connection opens one, and a connection is closed after some requests, so
connections are opened all the time. A request that is refused (429, 503) counts as one that took 15 s, and so does one
for which 400 connections are too few.

A request is one write of existing bytes, and only the status and the length of an answer are read. `python -m
benchmarks` measures both against a server of fixed answers, and prints what they cost.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, cast

import uvloop

LOOPBACK = "127.0.0.1"
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length: "
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_REFUSED = frozenset({b"429", b"503"})
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
_REQUESTS_OF_A_CONNECTION: Final = 50  # in the open loop
_MOST_CONNECTIONS: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Requests for one port. It ends after `seconds`, or with the last request unless `over_and_over`.

    With `at_once`, the connections are opened all together while it is measured.
    """

    port: int
    requests: tuple[bytes, ...]
    connections: int
    seconds: float
    over_and_over: bool = False
    at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPlan:
    """Requests for one port at a constant rate."""

    port: int
    requests: tuple[bytes, ...]
    per_second: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a plan. `client_busy` is the client's share of one core.

    `firsts` has the time from the start to the first answer of each connection that was opened `at_once`.
    """

    seconds: float
    latencies: tuple[float, ...]
    client_busy: float
    firsts: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


def drive(plan: Plan) -> Load:
    """Run the plan; raises `RuntimeError` for any answer but a 2xx."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(plan))


def drive_open(plan: OpenPlan) -> Load:
    """Run the plan; raises `RuntimeError` for any answer but a 2xx, 429 or 503."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive_open(plan))


async def _drive_open(plan: OpenPlan) -> Load:
    return await _OpenLoop(plan).run()


async def _drive(plan: Plan) -> Load:
    loop = asyncio.get_running_loop()
    requests = itertools.cycle(plan.requests) if plan.over_and_over else iter(plan.requests)

    def new_client() -> _Client:
        return _Client(requests, loop.create_future())

    async def connect() -> _Client:
        return (await loop.create_connection(new_client, LOOPBACK, plan.port))[1]

    clients: list[_Client] = []
    if not plan.at_once:
        async with asyncio.timeout(_CONNECT_SECONDS):
            clients = [await connect() for _ in range(plan.connections)]
    busy, start = time.process_time(), time.perf_counter()

    async def connect_and_start() -> _Client:
        client = await connect()
        client.start(until=start + plan.seconds)
        return client

    if plan.at_once:
        clients = list(await asyncio.gather(*(connect_and_start() for _ in range(plan.connections))))
    else:
        for client in clients:
            client.start(until=start + plan.seconds)
    async with asyncio.timeout(plan.seconds + _ANSWER_SECONDS):
        await asyncio.gather(*(client.ended for client in clients))
    seconds = time.perf_counter() - start
    busy = time.process_time() - busy
    latencies = tuple(itertools.chain.from_iterable(client.latencies for client in clients))
    firsts = tuple(client.first_answer - start for client in clients) if plan.at_once else ()
    return Load(seconds, latencies, busy / seconds, firsts)


class _Connection(asyncio.Protocol):
    """One connection, which reports each answer."""

    def __init__(self) -> None:
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        answer = self._answer + data if self._answer else data
        head_end = answer.find(_HEAD_END)
        if head_end < 0 or not _is_whole(answer, head_end):
            self._answer = answer
            return
        self._answer = b""
        if answer[9:10] == b"2":
            self.answered(time.perf_counter())
        elif answer[9:12] in _REFUSED:
            self.refused(answer)
        else:
            self.failed(RuntimeError(answer[:400].decode(errors="replace")))

    def answered(self, now: float) -> None:
        raise NotImplementedError

    def refused(self, answer: bytes) -> None:
        self.failed(RuntimeError(answer[:400].decode(errors="replace")))

    def failed(self, error: RuntimeError) -> None:
        raise NotImplementedError


class _Client(_Connection):
    """One connection of the closed loop."""

    def __init__(self, requests: Iterator[bytes], ended: asyncio.Future[None]) -> None:
        super().__init__()
        self._requests = requests
        self.ended = ended
        self.latencies: list[float] = []
        self.first_answer = 0.0
        self._until = 0.0
        self._sent = 0.0

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed(RuntimeError(f"the server closed the connection: {exc}"))

    def start(self, *, until: float) -> None:
        self._until = until
        self._send(time.perf_counter())

    def answered(self, now: float) -> None:
        self.first_answer = self.first_answer or now
        self.latencies.append(now - self._sent)
        self._send(now)

    def failed(self, error: RuntimeError) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)

    def _send(self, now: float) -> None:
        request = next(self._requests, None) if now < self._until else None
        if request is None:
            self._transport.close()
            if not self.ended.done():
                self.ended.set_result(None)
            return
        self._sent = now
        self._transport.write(request)


class _OpenLoop:
    """One run of an open plan."""

    def __init__(self, plan: OpenPlan) -> None:
        self._plan = plan
        self._requests = itertools.cycle(plan.requests)
        self._total = int(plan.per_second * plan.seconds)
        self._latencies: list[float] = []
        self._idle: list[_OpenConnection] = []
        self._opened = 0
        self._opening: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Load:
        busy, start = time.process_time(), time.perf_counter()
        sender = asyncio.create_task(self._send_all(start))
        try:
            async with asyncio.timeout(self._plan.seconds + _ANSWER_SECONDS):
                await self._ended
        finally:
            sender.cancel()
            for connection in self._idle:
                connection.close()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        return Load(seconds, tuple(self._latencies), busy / seconds)

    async def _send_all(self, start: float) -> None:
        sent = 0
        while sent < self._total:
            now = time.perf_counter()
            while sent < self._total and (due := start + sent / self._plan.per_second) <= now:
                self._send(due)
                sent += 1
            await asyncio.sleep(0.001)

    def _send(self, due: float) -> None:
        if self._idle:
            self._idle.pop().send(next(self._requests), due)
            return
        if self._opened == _MOST_CONNECTIONS:
            self._count(_ANSWER_SECONDS)
            return
        self._opened += 1
        task = asyncio.create_task(self._connect(due))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, due: float) -> None:
        def new_connection() -> _OpenConnection:
            return _OpenConnection(self._finished, self.fail)

        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                new_connection, LOOPBACK, self._plan.port
            )
        except OSError as error:
            self.fail(RuntimeError(f"no connection: {error}"))
        else:
            connection.send(next(self._requests), due)

    def _finished(self, connection: _OpenConnection, latency: float) -> None:
        if connection.requests < _REQUESTS_OF_A_CONNECTION:
            self._idle.append(connection)
        else:
            connection.close()
            self._opened -= 1
        self._count(latency)

    def _count(self, latency: float) -> None:
        self._latencies.append(latency)
        if len(self._latencies) == self._total and not self._ended.done():
            self._ended.set_result(None)

    def fail(self, error: RuntimeError) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)


class _OpenConnection(_Connection):
    """One connection of the open loop."""

    def __init__(
        self, finished: Callable[[_OpenConnection, float], None], fail: Callable[[RuntimeError], None]
    ) -> None:
        super().__init__()
        self._finished = finished
        self._fail = fail
        self.requests = 0
        self._due = 0.0
        self._closing = False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self.failed(RuntimeError(f"the server closed the connection: {exc}"))

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self.requests += 1
        self._transport.write(request)

    def answered(self, now: float) -> None:
        self._finished(self, now - self._due)

    def refused(self, answer: bytes) -> None:
        del answer
        self._finished(self, _ANSWER_SECONDS)

    def failed(self, error: RuntimeError) -> None:
        self._fail(error)

    def close(self) -> None:
        self._closing = True
        self._transport.close()


def _is_whole(answer: bytes, head_end: int) -> bool:
    head = answer[: head_end + 2].lower()
    at = head.find(_LENGTH)
    if at < 0:
        if _CHUNKED not in head:
            raise RuntimeError("an answer has no length")
        return answer.endswith(_LAST_CHUNK)
    at += len(_LENGTH)
    return len(answer) >= head_end + len(_HEAD_END) + int(head[at : head.find(b"\r\n", at)])
