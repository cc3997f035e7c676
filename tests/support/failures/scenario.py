"""Cause a failure under load, and require everything that its line of the table says."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Protocol

import httpx

from app.tokens.transitions import first_version
from tests.support.api.service import Service
from tests.support.failures.load import Load, path_of, secret_of
from tests.support.failures.table import BY_NAME, Failure
from tests.support.waiting import eventually

_READINESS_CACHE_SECONDS: Final = 1.1
_SLACK: Final = 10  # a test on a busy machine may take so many times the documented seconds


class Rows(Protocol):
    """Direct access to the database, past the service."""

    def rows(self) -> list[dict[str, Any]]: ...


def require_documented_failure(
    name: str, *, service: Service, store: Rows, breaks: Callable[[], object], mends: Callable[[], object]
) -> None:
    """Cause and end a failure while callers store tokens; require what its line of the table says."""
    failure = BY_NAME[name]
    with service.client() as client, Load(service) as load:
        kept = require_failing(client, load, failure, breaks=breaks)
        mends()
        require_recovery(client, failure, kept)
        load.wait_for_acknowledgements(8)
    require_nothing_lost(load, service, store)
    require_refusals(load, failure)


def require_failing(client: httpx.Client, load: Load, failure: Failure, *, breaks: Callable[[], object]) -> str:
    """Cause the failure once tokens are stored, and require its answers; return the user of a stored token."""
    load.wait_for_acknowledgements(20)
    kept = load.acknowledged[0]
    breaks()
    load.wait_for_refusals(4)
    _require_reads(client, failure, kept)
    _require_readiness(client, failure)
    return kept


def require_recovery(client: httpx.Client, failure: Failure, kept: str) -> None:
    """Require that a read succeeds again and the replica is ready."""
    eventually(
        lambda: client.get(path_of(kept)).status_code == 200 and client.get("/readyz").status_code == 200,
        within_seconds=recovery_bound_seconds(failure),
    )


def recovery_bound_seconds(failure: Failure) -> float:
    assert failure.recovers_within_seconds is not None
    return _SLACK * max(3, failure.recovers_within_seconds)


def require_nothing_lost(load: Load, service: Service, store: Rows) -> None:
    """Require that the database holds each acknowledged token, and that the service reveals a sample of them."""
    stored = {row["user_id"]: row for row in store.rows()}
    assert [user_id for user_id in load.acknowledged if user_id not in stored] == []
    for user_id in load.acknowledged:  # it was never changed: its version is still its creation time
        created_at = datetime.fromisoformat(str(stored[user_id]["created_at"]))
        assert stored[user_id]["version"] == first_version(created_at)
    with service.client() as client:
        for user_id in load.acknowledged[-30:]:
            assert client.get(path_of(user_id)).json()["access_token"] == secret_of(user_id)


def require_refusals(load: Load, failure: Failure) -> None:
    """Require that every answer but 201 is the documented problem, and that no connection was cut."""
    assert {(each.status, each.code, each.retryable) for each in load.refused} == {
        (failure.status, failure.code, failure.retryable)
    }
    assert {each.retry_after is not None for each in load.refused} == {failure.retryable}
    assert (load.cut, load.unexpected) == ([], [])


def _require_reads(client: httpx.Client, failure: Failure, kept: str) -> None:
    answer = client.get(path_of(kept))
    if failure.affects == "writes":
        assert answer.json()["access_token"] == secret_of(kept)
    else:
        assert (answer.status_code, answer.json()["code"]) == (failure.status, failure.code)


def _require_readiness(client: httpx.Client, failure: Failure) -> None:
    if failure.check is None:
        time.sleep(_READINESS_CACHE_SECONDS)
        assert client.get("/readyz").status_code == 200
    else:
        check, state = failure.check, "degraded" if failure.degraded else "down"
        eventually(lambda: client.get("/readyz").json()["checks"][check] == state, within_seconds=120)
        assert client.get("/readyz").status_code == (200 if failure.degraded else 503)
    assert client.get("/healthz").status_code == 200, "liveness stays up, so an orchestrator does not restart it"
