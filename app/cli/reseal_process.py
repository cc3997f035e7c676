"""One of the processes of `token-vault rewrap --processes N`: reseals what its standard input asks for, until it ends.

It has the settings of the command that starts it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, BinaryIO

from app.composition import build_encryption
from app.config.settings import load_settings
from app.errors import VaultError
from app.observability.logging import configure_logging
from app.server.process import forbid_core_dumps
from app.tokens.reseal_lines import MAXIMUM_LINE_BYTES, Answer, Question
from app.tokens.resealer import PrimaryDeniedError
from app.tokens.resealing_here import ResealerHere
from app.tokens.side_by_side import Tasks
from app.tokens.token_cipher import TokenCipher

if TYPE_CHECKING:
    from app.tokens.resealer import Resealer


def main() -> None:
    forbid_core_dumps()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who stops the whole unit stops its sweep, which then ends our input
    with _answers_alone() as answers, suppress(BrokenPipeError):  # the sweep has gone
        configure_logging(level="CRITICAL", log_format="console")
        with closing(build_encryption(load_settings())) as encryption:
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
        while line := await questions.readline():
            tasks.start(_answer(resealer, Question.parse(line), answers))
            tasks.raise_first()


async def _answer(resealer: Resealer, question: Question, answers: BinaryIO) -> None:
    try:
        answer = Answer(question.number, await resealer.reseal(question.ciphertexts, open_only=question.open_only))
    except (VaultError, PrimaryDeniedError) as error:
        answer = Answer(question.number, error=error)
    line = memoryview(answer.line())
    while line:  # the sweep reads all the time, so this hardly waits
        line = line[answers.write(line) :]


if __name__ == "__main__":
    main()
