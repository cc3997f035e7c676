"""Callers that keep storing tokens during a failure, and record the answers."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import httpx

from tests.support.api.service import Service

_CALLERS: Final = 4
_PAUSE_SECONDS: Final = 0.01
_WAIT_SECONDS: Final = 120.0


def secret_of(user_id: str) -> str:
    return f"the secret of {user_id}"


def path_of(user_id: str) -> str:
    return f"/v1/users/{user_id}/tokens/canvas"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is a problem document."""

    status: int
    code: str
    retryable: bool
    retry_after: str | None


class Load:
    """Stores new tokens from several threads within a `with` block.

    `acknowledged` and `cut` hold user ids: of the tokens whose storing was answered with 201, and of those whose
    connection ended without an answer. `unexpected` describes answers that are neither 201 nor a problem document.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._store, name="load") for _ in range(_CALLERS)]
        # lists, because appending to one is atomic
        self.acknowledged: list[str] = []
        self.refused: list[Refusal] = []
        self.cut: list[str] = []
        self.unexpected: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def wait_for_acknowledgements(self, more: int) -> None:
        self._wait(self.acknowledged, more)

    def wait_for_refusals(self, more: int) -> None:
        self._wait(self.refused, more)

    def _wait(self, growing: list[Any], more: int) -> None:
        target, deadline = len(growing) + more, time.monotonic() + _WAIT_SECONDS
        while len(growing) < target:
            assert time.monotonic() < deadline, f"{self.refused[-3:]} {self.unexpected[-3:]} {self.cut[-3:]}"
            time.sleep(0.02)

    def _store(self) -> None:
        with self._service.client() as client:
            while not self._stopped.is_set():
                user_id = str(uuid4())
                try:
                    answer = client.put(path_of(user_id), json={"access_token": secret_of(user_id)})
                except httpx.TransportError:
                    self.cut.append(user_id)
                else:
                    self._record(user_id, answer)
                time.sleep(_PAUSE_SECONDS)

    def _record(self, user_id: str, answer: httpx.Response) -> None:
        if answer.status_code == httpx.codes.CREATED:
            self.acknowledged.append(user_id)
        elif answer.headers["content-type"] == "application/problem+json":
            body = answer.json()
            retry_after = answer.headers.get("retry-after")
            self.refused.append(Refusal(answer.status_code, body["code"], body["retryable"], retry_after))
        else:
            self.unexpected.append(f"{answer.status_code} {answer.text[:200]}")
