"""Resealing in several processes, for one is no faster than one core: of a sweep to KMS boto3 takes most.

The sweep itself stays one: it reads pages, writes rows, counts and records. A process gets ciphertexts on its standard
input and answers with ciphertexts on its standard output; what lies between never leaves it. It ends when its input
does, so none outlives a sweep that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import zlib
from asyncio.subprocess import PIPE
from typing import TYPE_CHECKING, Final, Self, cast

from app.errors import InternalError
from app.tokens.reseal_lines import MAXIMUM_LINE_BYTES, Answer, Question

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

    from app.tokens.resealer import Resealer
    from app.tokens.token_cipher import Encrypted, SealedSecrets

_CLOSING_SECONDS: Final = 5.0


class ResealerProcesses:
    """A `Resealer` that runs `command` in so many processes; `here` proves the primary and takes oversized rows.

    A user's rows go to one process, so that a data key is fetched once. When a process ends before it should, whoever
    waits for it gets an `InternalError`. Raises `OSError` on entering where no process can be started.
    """

    def __init__(self, *, here: Resealer, command: Sequence[str], processes: int) -> None:
        self._here = here
        self._command = command
        self._processes = processes
        self._running: list[_Running] = []
        self._scheme: str | None = None
        self._numbers = itertools.count()

    async def __aenter__(self) -> Self:
        try:
            for _ in range(self._processes):
                self._running.append(await _Running.start(self._command))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._close()

    async def _close(self) -> None:
        await asyncio.gather(*(running.close() for running in self._running))

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


class _Running:
    """One process, and who waits for which of its answers."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._questions = cast("asyncio.StreamWriter", process.stdin)
        self._answers = cast("asyncio.StreamReader", process.stdout)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._ended = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, command: Sequence[str]) -> Self:
        # a session of its own: Ctrl-C is for the sweep, which lets what is under way finish
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, limit=MAXIMUM_LINE_BYTES, start_new_session=True
        )
        return cls(process)

    async def reseal(self, number: int, question: bytes) -> SealedSecrets | None:
        if self._ended:
            raise _ended()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            with contextlib.suppress(ConnectionError):  # the process has ended, which whoever reads will notice
                self._questions.write(question)
                await self._questions.drain()
            answer = await future
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
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        try:
            while line := await self._answers.readline():
                answer = Answer.parse(line)
                waiting = self._waiting.get(answer.number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        finally:
            self._ended = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(_ended())


def _ended() -> InternalError:
    return InternalError("a process of the sweep ended before its work was done")
