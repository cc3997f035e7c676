"""A failure in the middle of the work, and everything that its line of the table claims."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import httpx

from tests.support.api.service import Service
from tests.support.failures.load import Load, path_of, secret_of
from tests.support.failures.table import BY_NAME, Failure
from tests.support.waiting import eventually

NOTICED_WITHIN_SECONDS = 15.0


class Rows(Protocol):
    """The database itself, past the service."""

    def rows(self) -> list[dict[str, Any]]: ...


def require(
    name: str, *, service: Service, store: Rows, breaks: Callable[[], object], mends: Callable[[], object]
) -> None:
    """Break and mend the service's surroundings while callers store, and demand all that the table says of it."""
    failure = BY_NAME[name]
    with service.client() as client, Load(service) as load:
        kept = fails(client, load, failure, breaks=breaks)
        mends()
        recovers(client, failure, kept)
        load.wait_for_acknowledgements(8)
    require_nothing_lost(load, service, store)
    require_refusals(load, failure)


def fails(client: httpx.Client, load: Load, failure: Failure, *, breaks: Callable[[], object]) -> str:
    """Break it once tokens are stored, and demand what is seen meanwhile; returns the user of one that is stored."""
    load.wait_for_acknowledgements(20)
    kept = load.acknowledged[0]
    breaks()
    load.wait_for_refusals(4)
    _require_reads(client, failure, kept)
    _require_readiness(client, failure)
    return kept


def recovers(client: httpx.Client, failure: Failure, kept: str) -> None:
    """Demand that reads, and the replica as a whole, are well again within the time that the table gives."""
    assert failure.recovers_within_seconds is not None
    eventually(
        lambda: client.get(path_of(kept)).status_code == 200 and client.get("/readyz").status_code == 200,
        within_seconds=failure.recovers_within_seconds,
    )


def require_nothing_lost(load: Load, service: Service, store: Rows) -> None:
    """Look into the database for each acknowledged token, and reveal a sample through the service."""
    stored = {row["user_id"]: row for row in store.rows()}
    assert [user_id for user_id in load.acknowledged if user_id not in stored] == []
    assert {stored[user_id]["version"] for user_id in load.acknowledged} == {1}
    with service.client() as client:
        for user_id in load.acknowledged[-30:]:
            assert client.get(path_of(user_id)).json()["access_token"] == secret_of(user_id)


def require_refusals(load: Load, failure: Failure) -> None:
    """Look at every answer that was no success: each is the one of the table, and no connection was cut."""
    assert {(each.status, each.code, each.retryable) for each in load.refused} == {
        (failure.status, failure.code, failure.retryable)
    }
    assert {each.retry_after is not None for each in load.refused} == {failure.retryable}
    assert (load.cut, load.strange) == ([], [])


def _require_reads(client: httpx.Client, failure: Failure, kept: str) -> None:
    answer = client.get(path_of(kept))
    if failure.affects == "writes":
        assert answer.json()["access_token"] == secret_of(kept)
    else:
        assert (answer.status_code, answer.json()["code"]) == (failure.status, failure.code)


def _require_readiness(client: httpx.Client, failure: Failure) -> None:
    if failure.check is None:
        time.sleep(1.1)  # readiness is remembered for a second
        assert client.get("/readyz").status_code == 200
    else:
        check = failure.check
        eventually(
            lambda: client.get("/readyz").json()["checks"][check] == "down", within_seconds=NOTICED_WITHIN_SECONDS
        )
        assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200, "an orchestrator restarts nothing"
