"""Stand-in for Supabase's gateway: checks the API key, strips the path prefix, passes requests on to PostgREST.

It answers as Supabase's own gateway (Kong) does, and injects the faults that a test asks for. It runs on its own
thread and event loop, so synchronous tests, asynchronous tests and other processes can use it.
"""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from http import HTTPStatus
from http.client import responses

import uvloop

from tests.support.stack.gateway_faults import Cut, Fault, Faults, Reply, Request
from tests.support.stack.http_wire import (
    STREAM_LIMIT_BYTES,
    Head,
    UpstreamConnections,
    body_pieces,
    has_body,
    message,
    read_head,
    stays_open,
)
from tests.support.stack.loopback import LOOPBACK, free_port

_PREFIX = b"/rest/v1"
_START_SECONDS = 10.0


class Gateway:
    """One gateway in front of one PostgREST.

    `keys` maps each accepted API key to the `Authorization` header that PostgREST gets, or to `None` if the client's
    own header is passed on.
    """

    def __init__(self, *, postgrest_port: int, keys: Mapping[str, str | None]) -> None:
        self._keys = {
            key.encode(): None if authorization is None else authorization.encode()
            for key, authorization in keys.items()
        }
        self._upstream = UpstreamConnections(port=postgrest_port)
        self._port = free_port()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: asyncio.Server | None = None
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._recordings: list[list[Request]] = []
        self.faults = Faults(listen=self._set_listening)
        self.request_count = 0

    def admit(self, key: str, *, authorization: str) -> None:
        """Accept this key from now on, and send PostgREST this `Authorization` in place of the client's."""
        self._keys[key.encode()] = authorization.encode()

    @property
    def url(self) -> str:
        """The value of `SUPABASE_URL`."""
        return f"http://{LOOPBACK}:{self._port}"

    @contextmanager
    def recording(self) -> Iterator[list[Request]]:
        """Collect the requests that arrive within the block, including refused ones."""
        requests: list[Request] = []
        self._recordings.append(requests)
        try:
            yield requests
        finally:
            # by identity: two recordings with equal content are equal
            self._recordings = [each for each in self._recordings if each is not requests]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve within the block."""
        started: Future[Callable[[], None]] = Future()
        thread = threading.Thread(target=self._run, args=(started,), name="gateway", daemon=True)
        thread.start()
        stop = started.result(timeout=_START_SECONDS)
        try:
            yield
        finally:
            stop()
            thread.join(timeout=_START_SECONDS)

    def _run(self, started: Future[Callable[[], None]]) -> None:
        async def serve() -> None:
            self._loop = loop = asyncio.get_running_loop()
            stopped = asyncio.Event()

            def stop() -> None:
                loop.call_soon_threadsafe(stopped.set)

            try:
                await self._listen()
            except OSError as error:
                started.set_exception(error)
                return
            started.set_result(stop)
            await stopped.wait()
            self._loop = None
            await self._refuse()
            tasks = [task for task in self._clients.values() if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._upstream.close()
            # the aborted transports close in the next iteration of the loop
            await asyncio.sleep(0)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    def _set_listening(self, listening: bool) -> None:
        if self._loop is not None:
            change = self._listen() if listening else self._refuse()
            asyncio.run_coroutine_threadsafe(change, self._loop).result(timeout=_START_SECONDS)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(
                self._serve_client, LOOPBACK, self._port, limit=STREAM_LIMIT_BYTES, backlog=1024
            )

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for client in self._clients:
            client.transport.abort()

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients[writer] = asyncio.current_task()
        try:
            while (head := await read_head(reader)) is not None:
                body = b"".join([piece async for piece in body_pieces(reader, head)])
                await self._answer(head, body, writer)
                await writer.drain()
                if head.closes or writer.is_closing():
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError, ValueError):
            # the client closed, a fault cuts the connection, the gateway stops, or the bytes are not HTTP
            writer.transport.abort()
        finally:
            del self._clients[writer]
            writer.close()

    async def _answer(self, head: Head, body: bytes, client: asyncio.StreamWriter) -> None:
        method, target, _ = head.first_line.split(b" ", maxsplit=2)
        request = Request(method=method.decode("ascii"), target=target.decode("ascii"))
        self.request_count += 1
        for requests in self._recordings:
            requests.append(request)

        fault = self.faults.take(request) or Fault()
        if fault.delay_before_seconds:
            epoch = self.faults.epoch
            await asyncio.sleep(fault.delay_before_seconds)
            if epoch != self.faults.epoch:
                client.transport.abort()
                return
        if fault.cut is Cut.BEFORE_PASSING_ON:
            _cut(client, fault)
        elif fault.reply is not None:
            client.write(_reply_bytes(fault.reply))
        elif (problem := self._refusal(head, target)) is not None:
            client.write(problem)
        else:
            await self._pass_on(self._rewritten(head, method, target) + body, method, fault, client)

    def _refusal(self, head: Head, target: bytes) -> bytes | None:
        if not target.startswith(_PREFIX + b"/"):
            return _kong_error("no Route matched with those values", HTTPStatus.NOT_FOUND)
        key = head.headers.get(b"apikey")
        if key is None:
            return _kong_error("No API key found in request", HTTPStatus.UNAUTHORIZED)
        if key not in self._keys:
            return _kong_error("Invalid authentication credentials", HTTPStatus.UNAUTHORIZED)
        return None

    def _rewritten(self, head: Head, method: bytes, target: bytes) -> bytes:
        header_block = head.header_block
        authorization = self._keys[head.headers[b"apikey"]]
        if authorization is not None:
            kept = (line for line in header_block.split(b"\r\n") if not line.lower().startswith(b"authorization:"))
            header_block = b"Authorization: " + authorization + b"\r\n" + b"\r\n".join(kept)
        return b"%b %b HTTP/1.1\r\n%b" % (method, target.removeprefix(_PREFIX), header_block)

    async def _pass_on(self, raw_request: bytes, method: bytes, fault: Fault, client: asyncio.StreamWriter) -> None:
        try:
            postgrest = await self._upstream.take()
        except OSError:
            client.write(_BAD_GATEWAY)
            return
        is_reusable = False
        # the answer is held back if a fault delays or cuts it
        holds = fault.cut is not None or fault.delay_after_seconds > 0
        held: list[bytes] = []
        try:
            postgrest.writer.write(raw_request)
            answer = await read_head(postgrest.reader)
            if answer is None:
                client.write(_BAD_GATEWAY)
                return
            held.append(b"%b\r\n%b" % (answer.first_line, answer.header_block))
            if has_body(method, answer):
                async for piece in body_pieces(postgrest.reader, answer):
                    held.append(piece)
                    if not holds:
                        client.write(b"".join(held))
                        held.clear()
            is_reusable = stays_open(method, answer)
        finally:
            self._upstream.give_back(postgrest, is_reusable=is_reusable)

        if fault.delay_after_seconds:
            await asyncio.sleep(fault.delay_after_seconds)
        if fault.cut is Cut.AFTER_THE_ANSWER:
            _cut(client, fault)
        elif held:
            client.write(b"".join(held))


def _cut(client: asyncio.StreamWriter, fault: Fault) -> None:
    if fault.resets:
        # a linger time of zero makes close() send RST
        client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


def _reply_bytes(reply: Reply) -> bytes:
    return message(
        f"{reply.status} {responses.get(reply.status, 'Unknown')}",
        content_type=reply.content_type,
        body=reply.body,
        headers=() if reply.location is None else (f"Location: {reply.location}",),
    )


def _kong_error(text: str, status: HTTPStatus) -> bytes:
    return message(
        f"{status.value} {status.phrase}",
        content_type="application/json; charset=utf-8",
        body=json.dumps({"message": text}).encode(),
    )


_BAD_GATEWAY = _kong_error("An invalid response was received from the upstream server", HTTPStatus.BAD_GATEWAY)
