"""A repository whose calls fail: before they reach the store, or with a lost answer after it, or for good."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from app.errors import StoreUnavailable
from app.tokens.repository import TokenRepository


class ProcessEnded(Exception):
    """What a call raises that its process does not live to make."""


@dataclass(slots=True)
class Failures:
    """How many of the next calls of each method fail; those in `answers_lost` fail after the store has done them.

    While `down` is true every call fails. A call of a method in `ends_at` raises `ProcessEnded`.
    """

    refused: dict[str, int] = field(default_factory=dict)
    answers_lost: dict[str, int] = field(default_factory=dict)
    down: bool = False
    ends_at: str | None = None

    def take(self, kind: dict[str, int], method: str) -> bool:
        left = kind.get(method, 0)
        kind[method] = max(0, left - 1)
        return left > 0


class _FailingRepository:
    def __init__(self, tokens: TokenRepository, failures: Failures) -> None:
        self._tokens = tokens
        self._failures = failures

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._tokens, name)

        async def failing_call(*arguments: Any, **named: Any) -> Any:
            if name == self._failures.ends_at:
                raise ProcessEnded
            if self._failures.down or self._failures.take(self._failures.refused, name):
                raise StoreUnavailable("the store is down")
            result = await call(*arguments, **named)
            if self._failures.take(self._failures.answers_lost, name):
                raise StoreUnavailable("the answer was lost")
            return result

        return failing_call


def failing(tokens: TokenRepository, failures: Failures) -> TokenRepository:
    """Return a repository that fails as `failures` says at the time of each call."""
    return cast("TokenRepository", _FailingRepository(tokens, failures))
