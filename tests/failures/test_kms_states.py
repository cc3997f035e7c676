"""KMS as the primary, in each state that it or its key can be in: the answers, and the recovery.

`tests/api/test_kms.py` tests the breaker and readiness during a long outage; here each state lasts for a few calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol
from uuid import uuid4

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.failures.load import path_of, secret_of
from tests.support.failures.scenario import recovery_bound_seconds
from tests.support.failures.table import BY_NAME
from tests.support.stack.kms import Kms
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SqliteStore:
    return SqliteStore(tmp_path_factory.mktemp("kms-states") / "vault.db")


@pytest.fixture(scope="module")
def service(kms_server: Kms, store: SqliteStore) -> Iterator[Service]:
    """One service for all states. It caches one data key, so storing for another user makes a read need KMS."""
    kms_server.renew()
    environment = {**store.environment(), **kms_server.environment(), "DATA_KEY_CACHE_SIZE": "1"}
    with running_service(store.path.parent, environment) as service:
        yield service


class RequireState(Protocol):
    def __call__(self, name: str, *, breaks: Callable[[], object], mends: Callable[[], object]) -> None: ...


@pytest.fixture
def require_documented_state(service: Service, store: SqliteStore) -> RequireState:
    """Require the documented answer to a write and a read that need KMS, and that both succeed afterwards."""
    return partial(_require_documented_state, service=service, store=store)


def _require_documented_state(
    name: str, *, service: Service, store: SqliteStore, breaks: Callable[[], object], mends: Callable[[], object]
) -> None:
    failure = BY_NAME[name]
    assert failure.code is not None
    assert failure.status is not None
    kept, refused = str(uuid4()), str(uuid4())
    with service.client() as client:

        def write(user_id: str) -> httpx.Response:
            return client.put(path_of(user_id), json={"access_token": secret_of(user_id)})

        for user_id in (kept, str(uuid4())):
            assert write(user_id).status_code == 201
        before = store.rows()
        breaks()
        try:
            # the client waits for 20 seconds, so a call without a deadline fails here
            problem(write(refused), failure.status, failure.code)
            problem(client.get(path_of(kept)), failure.status, failure.code)
            assert store.rows() == before, "nothing was written, not even under another key"
        finally:
            mends()
        bound = recovery_bound_seconds(failure)
        eventually(
            lambda: client.get(path_of(kept)).status_code == 200 and write(refused).is_success, within_seconds=bound
        )
        assert client.get(path_of(kept)).json()["access_token"] == secret_of(kept)
        eventually(lambda: client.get("/readyz").status_code == 200, within_seconds=bound)
    assert {row["user_id"] for row in store.rows()} >= {kept, refused}


def test_kms_throttles(kms_server: Kms, require_documented_state: RequireState) -> None:
    faults = kms_server.faults
    require_documented_state("KMS throttles", breaks=lambda: faults.error("ThrottlingException"), mends=faults.clear)


def test_kms_slow(kms_server: Kms, require_documented_state: RequireState) -> None:
    faults = kms_server.faults
    require_documented_state("KMS slow", breaks=lambda: faults.delay(60), mends=faults.clear)


def test_kms_answers_html(kms_server: Kms, require_documented_state: RequireState) -> None:
    faults = kms_server.faults
    require_documented_state("HTML page instead of KMS's answer", breaks=lambda: faults.answer(200), mends=faults.clear)


def test_kms_denies(kms_server: Kms, require_documented_state: RequireState) -> None:
    faults = kms_server.faults
    require_documented_state("KMS denies", breaks=lambda: faults.error("AccessDeniedException"), mends=faults.clear)


def test_key_disabled(kms_server: Kms, require_documented_state: RequireState) -> None:
    arn = kms_server.key_arn
    require_documented_state(
        "KMS key disabled", breaks=lambda: kms_server.disable(arn), mends=lambda: kms_server.enable(arn)
    )


def test_key_pending_deletion(kms_server: Kms, require_documented_state: RequireState) -> None:
    arn = kms_server.key_arn

    def cancel_deletion() -> None:
        kms_server.cancel_deletion(arn)
        kms_server.enable(arn)

    require_documented_state(
        "KMS key pending deletion", breaks=lambda: kms_server.schedule_deletion(arn), mends=cancel_deletion
    )


def test_key_not_found(kms_server: Kms, require_documented_state: RequireState) -> None:
    faults = kms_server.faults
    require_documented_state("KMS key not found", breaks=lambda: faults.error("NotFoundException"), mends=faults.clear)


def test_signature_with_a_wrong_clock(kms_server: Kms, require_documented_state: RequireState) -> None:
    """AWS answers so if the clock of the machine is more than five minutes off."""
    faults = kms_server.faults
    require_documented_state(
        "Clock skew: AWS refuses the signature",
        breaks=lambda: faults.error("InvalidSignatureException"),
        mends=faults.clear,
    )
