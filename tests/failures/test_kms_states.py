"""KMS as the primary, in each of the states that it or its key can be in: what callers get, and how soon it is over.

The breaker and readiness in a long outage are `tests/api/test_kms.py`'s; here each state is met by a few calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.failures.load import path_of, secret_of
from tests.support.failures.table import BY_NAME
from tests.support.stack.kms import Kms
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually

ANSWER_SECONDS = 4.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SqliteStore:
    return SqliteStore(tmp_path_factory.mktemp("kms-states") / "vault.db")


@pytest.fixture(scope="module")
def service(kms_server: Kms, store: SqliteStore) -> Iterator[Service]:
    """One service for all states; a data key serves one call, so each call needs KMS."""
    kms_server.renew()
    environment = {**store.environment(), **kms_server.environment(), "DATA_KEY_MAX_AGE_SECONDS": "1"}
    with running_service(store.path.parent, environment) as service:
        yield service


def _require(
    name: str, service: Service, store: SqliteStore, *, breaks: Callable[[], object], mends: Callable[[], object]
) -> None:
    failure = BY_NAME[name]
    assert failure.code is not None
    assert failure.status is not None
    assert failure.recovers_within_seconds is not None
    kept, refused = str(uuid4()), str(uuid4())
    with service.client() as client:
        calls: tuple[Callable[[], httpx.Response], ...] = (
            lambda: client.put(path_of(refused), json={"access_token": secret_of(refused)}),
            lambda: client.get(path_of(kept)),
        )
        assert client.put(path_of(kept), json={"access_token": secret_of(kept)}).status_code == 201
        before = store.rows()
        time.sleep(1.1)  # the data key is too old now
        breaks()
        try:
            for call in calls:
                began = time.monotonic()
                answer = call()
                assert time.monotonic() - began < ANSWER_SECONDS
                problem(answer, failure.status, failure.code)
            assert store.rows() == before, "nothing was written, and nothing under another key"
        finally:
            mends()
        eventually(
            lambda: (
                client.get(path_of(kept)).status_code == 200
                and client.put(path_of(refused), json={"access_token": secret_of(refused)}).is_success
            ),
            within_seconds=failure.recovers_within_seconds,
        )
        assert client.get(path_of(kept)).json()["access_token"] == secret_of(kept)
        eventually(lambda: client.get("/readyz").status_code == 200, within_seconds=failure.recovers_within_seconds)
    assert {row["user_id"] for row in store.rows()} >= {kept, refused}


def test_kms_throttles(kms_server: Kms, service: Service, store: SqliteStore) -> None:
    faults = kms_server.faults
    _require("KMS throttles", service, store, breaks=lambda: faults.error("ThrottlingException"), mends=faults.clear)


def test_kms_slow(kms_server: Kms, service: Service, store: SqliteStore) -> None:
    faults = kms_server.faults
    _require("KMS slow", service, store, breaks=lambda: faults.delay(20), mends=faults.clear)


def test_kms_answers_html(kms_server: Kms, service: Service, store: SqliteStore) -> None:
    faults = kms_server.faults
    _require("KMS's place taken by HTML", service, store, breaks=lambda: faults.answer(200), mends=faults.clear)


def test_kms_denies(kms_server: Kms, service: Service, store: SqliteStore) -> None:
    faults = kms_server.faults
    _require("KMS denies", service, store, breaks=lambda: faults.error("AccessDeniedException"), mends=faults.clear)


def test_key_disabled(kms_server: Kms, service: Service, store: SqliteStore) -> None:
    arn = kms_server.key_arn
    _require(
        "KMS key disabled",
        service,
        store,
        breaks=lambda: kms_server.disable(arn),
        mends=lambda: kms_server.enable(arn),
    )


def test_key_pending_deletion(kms_server: Kms, service: Service, store: SqliteStore) -> None:
    arn = kms_server.key_arn

    def keep_after_all() -> None:
        kms_server.cancel_deletion(arn)
        kms_server.enable(arn)

    _require(
        "KMS key pending deletion",
        service,
        store,
        breaks=lambda: kms_server.schedule_deletion(arn),
        mends=keep_after_all,
    )


def test_key_not_found(kms_server: Kms, service: Service, store: SqliteStore) -> None:
    faults = kms_server.faults
    _require("KMS key not found", service, store, breaks=lambda: faults.error("NotFoundException"), mends=faults.clear)


def test_signature_of_another_time(kms_server: Kms, service: Service, store: SqliteStore) -> None:
    """What AWS answers a machine whose clock is more than five minutes off."""
    faults = kms_server.faults
    _require(
        "Clock skew: AWS refuses the signature",
        service,
        store,
        breaks=lambda: faults.error("InvalidSignatureException"),
        mends=faults.clear,
    )
