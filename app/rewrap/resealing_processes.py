"""Resealing in several processes, for one is no faster than one core: of a sweep to KMS boto3 takes most.

The sweep itself stays one: it reads pages, writes rows, counts and records. A process gets ciphertexts on its standard
input and answers with ciphertexts on its standard output; what lies between never leaves it. It ends when its input
does, so none outlives a sweep that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import zlib
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from typing import Final, Self, cast

from app.concurrency import all_of
from app.errors import InternalError
from app.rewrap.reseal_lines import MAXIMUM_LINE_BYTES, READY, Answer, Question
from app.rewrap.resealer import Resealer
from app.tokens.cipher import Encrypted, SealedSecrets

ANSWER_SECONDS: Final = 30.0  # many times what a row takes where KMS and derivations use up their own deadlines
_START_SECONDS: Final = 30.0
_CLOSING_SECONDS: Final = 5.0
_FOR_THE_SWEEP: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class ResealerProcesses:
    """A `Resealer` that runs `command` in so many processes; `here` proves the primary and takes oversized rows.

    Each is started with `environment` and nothing else, and gets `first_line`, which may be secret, over its pipe. A
    user's rows go to one process, so that a data key is fetched once. Where a process ends before it should, or does
    not answer in time, whoever waits for it gets an `InternalError`. Entering raises `OSError` or `InternalError`
    where no process can be started.
    """

    def __init__(
        self,
        *,
        here: Resealer,
        command: Sequence[str],
        environment: Mapping[str, str],
        first_line: bytes,
        processes: int,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._here = here
        self._command = command
        self._environment = environment
        self._first_line = first_line
        self._processes = processes
        self._answer_seconds = answer_seconds
        self._running: list[_Running] = []
        self._scheme: str | None = None
        self._numbers = itertools.count()

    async def __aenter__(self) -> Self:
        try:
            for _ in range(self._processes):
                process = await _start(self._command, self._environment)
                self._running.append(_Running(process, self._here.concurrent_rows, self._answer_seconds))
            await all_of(running.make_ready(self._first_line) for running in self._running)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._close()

    async def _close(self) -> None:
        await all_of(running.close() for running in self._running)

    @property
    def primary_scheme(self) -> str | None:
        return self._scheme or self._here.primary_scheme

    @property
    def concurrent_rows(self) -> int:
        return self._here.concurrent_rows * self._processes

    async def prove_primary(self) -> None:
        await self._here.prove_primary()

    async def reseal(self, row: Encrypted, *, open_only: bool = False) -> SealedSecrets | None:
        question = Question.about(next(self._numbers), row, open_only=open_only)
        line = question.line()
        if len(line) >= MAXIMUM_LINE_BYTES:
            return await self._here.reseal(row, open_only=open_only)  # it will say what is wrong with such a row
        process = self._running[zlib.crc32(row.token_id.user_id.encode()) % len(self._running)]
        sealed = await process.reseal(question.number, line)
        if sealed is not None:
            self._scheme = sealed.access.scheme  # an alias may have moved since the primary was proved
        return sealed


async def _start(command: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Start a process that ends when its input does and by no signal meant for the sweep: it inherits what is blocked.

    Ctrl-C reaches a whole terminal, and a service manager's SIGTERM a whole unit.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_SWEEP)
    try:
        return await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=PIPE, stdout=PIPE, limit=MAXIMUM_LINE_BYTES
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Running:
    """One process, and who waits for which of its answers."""

    def __init__(self, process: Process, concurrent_rows: int, answer_seconds: float) -> None:
        self._process = process
        self._questions = cast("asyncio.StreamWriter", process.stdin)
        self._answers = cast("asyncio.StreamReader", process.stdout)
        self._rows = asyncio.Semaphore(concurrent_rows)
        self._answer_seconds = answer_seconds
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._ended = False
        self._reading: asyncio.Task[None] | None = None

    async def make_ready(self, first_line: bytes) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                self._questions.write(first_line)
                ready = await self._answers.readline()
        except (OSError, ValueError):  # also `TimeoutError`
            ready = b""
        if ready != READY:
            raise InternalError("a process of the sweep does not start")
        self._reading = asyncio.create_task(self._read())

    async def reseal(self, number: int, question: bytes) -> SealedSecrets | None:
        async with self._rows:
            if self._ended:
                raise _ended()
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting[number] = future
            try:
                async with asyncio.timeout(self._answer_seconds):
                    with contextlib.suppress(ConnectionError):  # it has ended, which whoever reads will notice
                        self._questions.write(question)
                        await self._questions.drain()
                    answer = await future
            except TimeoutError:
                self._kill()
                raise InternalError("a process of the sweep did not answer") from None
            finally:
                del self._waiting[number]
        if answer.error is not None:
            raise answer.error
        return answer.sealed

    async def close(self) -> None:
        """Let the process end, and see to it that it does."""
        self._questions.close()
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self) -> None:
        try:
            while (line := await self._answers.readline()).endswith(b"\n"):
                answer = Answer.parse(line)
                waiting = self._waiting.get(answer.number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except (KeyError, TypeError, ValueError):  # something that is no answer
            self._kill()
        finally:
            self._ended = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(_ended())

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


def _ended() -> InternalError:
    return InternalError("a process of the sweep ended before its work was done")
