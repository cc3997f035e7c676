"""What goes over the pipe between a sweep and its processes, and that each error is still itself behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from app import errors
from app.reseal_process import _answer
from app.rewrap.reseal_lines import Answer, Ciphertexts, Question
from app.rewrap.resealer import PrimaryDeniedError, Resealer
from app.security.strategy import Sealed
from app.tokens.cipher import Encrypted, SealedSecrets
from app.tokens.models import TokenId

ODD = "\ud800 \n \x00 \u2028 \U0001f511"


def _subclasses(error: type[errors.VaultError]) -> Iterator[type[errors.VaultError]]:
    for one in error.__subclasses__():
        yield one
        yield from _subclasses(one)


def test_a_question_and_an_answer_are_one_line_each_and_come_back_as_they_were() -> None:
    row = Ciphertexts(TokenId("user", "canvas", ODD), ODD, None)
    question = Question.about(7, row, open_only=True)
    sealed = SealedSecrets(Sealed("v2:a", "local:v2", "aes256-gcm-v2"), Sealed("kms:{}", "kms:arn", "kms", "id"))
    answers = [Answer(7, sealed), Answer(8, SealedSecrets(sealed.access, None)), Answer(9)]
    assert Question.parse(question.line()) == question
    assert [Answer.parse(answer.line()) for answer in answers] == answers
    for line in (question.line(), *(answer.line() for answer in answers)):
        assert (line.count(b"\n"), line[-1:]) == (1, b"\n")


@pytest.mark.parametrize("kind", [*_subclasses(errors.EncryptionError), errors.InvalidRequest, errors.InternalError])
def test_an_error_keeps_its_class_and_its_words(kind: type[errors.VaultError]) -> None:
    parsed = Answer.parse(Answer(3, error=kind("why")).line())
    assert (parsed.number, parsed.sealed) == (3, None)
    assert isinstance(parsed.error, errors.VaultError)
    assert (type(parsed.error), parsed.error.detail) == (kind, "why")


@pytest.mark.parametrize("kind", [errors.KeyDenied, errors.CredentialsDenied])
def test_what_denies_the_primary_is_not_about_the_row_and_still_says_what_it_is(kind: type[errors.KeyDenied]) -> None:
    error = Answer.parse(Answer(3, error=PrimaryDeniedError(kind("why"))).line()).error
    assert isinstance(error, PrimaryDeniedError)
    assert (type(error.error), error.error.detail) == (kind, "why")


class _Defective:
    """A `Resealer` with a defect."""

    primary_scheme = None
    concurrent_rows = 1

    async def prove_primary(self) -> None: ...

    async def reseal(self, row: Encrypted, *, open_only: bool = False) -> SealedSecrets | None:
        raise RuntimeError(f"can't start new thread for {row.access_ciphertext} {open_only}")


async def test_a_defect_is_answered_too_and_in_words_of_ours() -> None:
    """Or whoever asked would wait for the answer."""
    resealer: Resealer = _Defective()
    read, write = os.pipe()
    with os.fdopen(read, "rb") as received:
        with os.fdopen(write, "wb", buffering=0) as answers:
            question = Question(5, open_only=False, ciphertexts=Ciphertexts(TokenId("user", "canvas"), "secret", None))
            await _answer(resealer, question, answers)
        line = received.read()
    answer = Answer.parse(line)
    assert (answer.number, type(answer.error)) == (5, errors.InternalError)
    assert b"secret" not in line
