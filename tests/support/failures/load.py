"""Callers that keep storing while something breaks, and remember what they were told."""

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
_PATIENCE_SECONDS: Final = 60.0


def secret_of(user_id: str) -> str:
    return f"the secret of {user_id}"


def path_of(user_id: str) -> str:
    return f"/v1/users/{user_id}/tokens/canvas"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that was no success."""

    status: int
    code: str
    retryable: bool
    retry_after: str | None


class Load:
    """Stores one new token after the other from several threads, inside of a `with` block."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._store, name="load") for _ in range(_CALLERS)]
        # lists, since appending needs no lock
        self.acknowledged: list[str] = []
        self.refused: list[Refusal] = []
        self.cut: list[str] = []
        self.strange: list[str] = []

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
        target, deadline = len(growing) + more, time.monotonic() + _PATIENCE_SECONDS
        while len(growing) < target:
            assert time.monotonic() < deadline, f"{self.refused[-3:]} {self.strange[-3:]} {self.cut[-3:]}"
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
                    self._note(user_id, answer)
                time.sleep(_PAUSE_SECONDS)

    def _note(self, user_id: str, answer: httpx.Response) -> None:
        if answer.status_code == httpx.codes.CREATED:
            self.acknowledged.append(user_id)
        elif answer.headers["content-type"] == "application/problem+json":
            body = answer.json()
            retry_after = answer.headers.get("retry-after")
            self.refused.append(Refusal(answer.status_code, body["code"], body["retryable"], retry_after))
        else:
            self.strange.append(f"{answer.status_code} {answer.text[:200]}")
