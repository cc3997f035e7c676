"""The service over each store: one process per store and session, and an empty store for each test."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support.api.service import Service, running_service
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import PostgresStore, SqliteStore, Store, SupabaseStore

ON_EVERY_STORE = pytest.mark.parametrize("served", ["sqlite", "postgres", "supabase"], indirect=True)


@pytest.fixture(scope="session")
def sqlite_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, SqliteStore]]:
    folder = tmp_path_factory.mktemp("service-sqlite")
    store = SqliteStore(folder / "vault.db")
    with running_service(folder, store.environment()) as service:
        yield service, store


@pytest.fixture(scope="session")
def supabase_service(
    tmp_path_factory: pytest.TempPathFactory, supabase_stack: SupabaseStack
) -> Iterator[tuple[Service, SupabaseStore]]:
    folder = tmp_path_factory.mktemp("service-supabase")
    store = SupabaseStore(supabase_stack)
    with running_service(folder, store.environment()) as service:
        yield service, store


@pytest.fixture(scope="session")
def postgres_service(
    tmp_path_factory: pytest.TempPathFactory, supabase_stack: SupabaseStack
) -> Iterator[tuple[Service, PostgresStore]]:
    folder = tmp_path_factory.mktemp("service-postgres")
    store = PostgresStore(supabase_stack)
    with running_service(folder, store.environment()) as service:
        yield service, store


@pytest.fixture(params=["sqlite", "supabase"])
def served(request: pytest.FixtureRequest) -> tuple[Service, Store]:
    """A running service and its empty store, for two kinds of stores.

    Modules about what a store does are parametrised with `ON_EVERY_STORE`: the others are about the API alone.
    """
    if request.param != "sqlite":
        request.getfixturevalue("supabase")  # resets the store
    pair: tuple[Service, Store] = request.getfixturevalue(f"{request.param}_service")
    if isinstance(pair[1], SqliteStore):
        pair[1].truncate()
    return pair


@pytest.fixture
def service(served: tuple[Service, Store]) -> Service:
    return served[0]


@pytest.fixture
def served_store(served: tuple[Service, Store]) -> Store:
    return served[1]


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """A client with every scope."""
    with service.client() as one:
        yield one


def problem(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    """Assert that an answer is this problem, with the members and headers of every problem; return its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = json.loads(response.text)
    assert body["code"] == code
    assert body["status"] == status
    assert body["type"] == f"urn:pulseplan:token-vault:{code}"
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["retryable"] is (status in {429, 503, 504})
    assert ("retry-after" in response.headers) is (status in {429, 503, 504})
    assert {"title", "detail"} < body.keys()
    return body
