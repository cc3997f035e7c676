"""One of the processes of `token-vault rewrap --processes N`: reseals what its standard input asks for, until it ends.

The first line of that input has the settings of the sweep, just as it has read them: a process that read them for
itself might find others, and seal everything under another key.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import sys
from contextlib import closing, suppress
from typing import BinaryIO, Final

import structlog

from app.composition import build_encryption
from app.concurrency import Tasks
from app.config.settings import Settings
from app.errors import InternalError, VaultError
from app.observability.logging import configure_command_logging
from app.rewrap.reseal_lines import MAXIMUM_LINE_BYTES, READY, Answer, Question
from app.rewrap.resealer import PrimaryDeniedError, Resealer
from app.rewrap.resealing_here import ResealerHere
from app.server.hardening import protect_process
from app.server.workers import hidden_variables
from app.tokens.cipher import TokenCipher

COMMAND: Final = (sys.executable, "-P", "-m", "app.reseal_process")
_log = structlog.get_logger()


def first_line(settings: Settings) -> bytes:
    """Return what such a process has to be told, secrets and all."""
    return base64.b64encode(pickle.dumps((hidden_variables(), settings))) + b"\n"


def main() -> None:
    protect_process()
    with _answers_alone() as answers, suppress(BrokenPipeError):  # the sweep has gone
        configure_command_logging()
        line = sys.stdin.buffer.readline()
        hidden, settings = pickle.loads(base64.b64decode(line))  # noqa: S301  ours, from who has started us
        os.environ.update(hidden)
        with closing(build_encryption(settings)) as encryption:
            _write(answers, READY)
            asyncio.run(_answer_all(ResealerHere(cipher=TokenCipher(encryption=encryption.service)), answers))


def _answers_alone() -> BinaryIO:
    """Return what was standard output, to which nothing else can be printed any more: that goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


async def _answer_all(resealer: Resealer, answers: BinaryIO) -> None:
    questions = asyncio.StreamReader(limit=MAXIMUM_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin.buffer)
    async with Tasks() as tasks:
        # a line without an end is what a sweep has left that was killed
        while (line := await questions.readline()).endswith(b"\n"):
            tasks.start(_answer(resealer, Question.parse(line), answers))
            tasks.raise_first()


async def _answer(resealer: Resealer, question: Question, answers: BinaryIO) -> None:
    try:
        answer = Answer(question.number, await resealer.reseal(question.ciphertexts, open_only=question.open_only))
    except (VaultError, PrimaryDeniedError) as error:
        answer = Answer(question.number, error=error)
    except Exception as error:  # noqa: BLE001  whoever waits must hear of it
        _log.critical("failed", exc_info=error)
        answer = Answer(question.number, error=InternalError("a process of the sweep has a defect"))
    _write(answers, answer.line())


def _write(answers: BinaryIO, line: bytes) -> None:
    rest = memoryview(line)
    while rest:  # the sweep reads all the time, so this hardly waits
        rest = rest[answers.write(rest) :]


if __name__ == "__main__":
    main()
