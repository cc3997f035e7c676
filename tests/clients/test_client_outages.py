"""The Python client while the vault or its store is down, slow or cut, as client/README.md says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import httpx
import pytest
from token_vault_client import (
    Overloaded,
    RetryPolicy,
    StoreTimeout,
    StoreUnavailable,
    UnexpectedAnswer,
    Unreachable,
    VaultClient,
    VaultError,
)
from token_vault_client.client import DEFAULT_TIMEOUT

from tests.support.api.service import Service
from tests.support.api.vault_clients import KINDS, vault_client
from tests.support.stack.gateway_faults import reads, writes
from tests.support.stack.loopback import LOOPBACK, PLAIN_HTTP, free_port
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore

WRITES: dict[str, Callable[[VaultClient, str], object]] = {
    "store if it has a version": lambda vault, user: vault.store(user, "google", access_token="x", if_match=1),
    "store if it is new": lambda vault, user: vault.store(user, "google", access_token="x", only_if_absent=True),
    "patch": lambda vault, user: vault.patch(user, "google", metadata={"a": 1}),
    "rotate": lambda vault, user: vault.rotate(user, "google", access_token="x"),
    "exchange": lambda vault, user: vault.exchange(user, "google", code="c", redirect_uri="https://x.test"),
    "delete": lambda vault, user: vault.delete(user, "google"),
    "erase": lambda vault, user: vault.erase_user(user),
}
REPEATABLE: dict[str, Callable[[VaultClient, str], object]] = {
    "reveal": lambda vault, user: vault.reveal(user, "google"),
    "list": lambda vault, user: vault.list_for_user(user),
    "batch": lambda vault, _: vault.batch_get([]),
    "refresh": lambda vault, user: vault.refresh(user, "google", rejected_version=1),
    "store": lambda vault, user: vault.store(user, "google", access_token="x"),
    "rewrap": lambda vault, user: vault.rewrap(user, "google"),
}


@pytest.fixture
def user() -> str:
    return str(uuid4())


@pytest.fixture(params=KINDS)
def vault(
    request: pytest.FixtureRequest, supabase: SupabaseStack, supabase_service: tuple[Service, SupabaseStore]
) -> Iterator[VaultClient]:
    del supabase  # reset, so before the first write
    with vault_client(request.param, supabase_service[0]) as client:
        yield client


def test_a_read_waits_as_the_vault_says_until_the_store_is_back(
    vault: VaultClient, user: str, supabase: SupabaseStack
) -> None:
    vault.store(user, "google", access_token="one")
    supabase.faults.cut_before(times=1, when=reads)
    supabase.faults.answer(503, times=1, when=reads)
    started = time.monotonic()
    assert vault.reveal(user, "google").access_token == "one"
    assert time.monotonic() - started >= 2, "Retry-After is a second, twice"


def test_a_read_of_a_store_that_stays_down_is_raised_in_the_end(
    vault: VaultClient, user: str, supabase: SupabaseStack
) -> None:
    supabase.faults.down()
    with pytest.raises(StoreUnavailable) as raised:
        vault.list_for_user(user)
    assert (raised.value.outcome_unknown, raised.value.retryable, raised.value.status) == (False, True, 503)


def test_a_write_of_unknown_outcome_is_not_repeated(vault: VaultClient, user: str, supabase: SupabaseStack) -> None:
    version = vault.store(user, "google", access_token="one").version
    supabase.faults.answer(503, when=writes)
    for write in (
        lambda: vault.rotate(user, "google", access_token="two"),
        lambda: vault.patch(user, "google", status="error", if_match=version),
        lambda: vault.store(user, "google", access_token="two", if_match=version),
        lambda: vault.delete(user, "google"),
    ):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable) as raised:
            write()
        assert raised.value.outcome_unknown
        assert time.monotonic() - started < 5
    supabase.faults.clear()
    assert vault.reveal(user, "google").version == version


def test_a_store_without_a_condition_is_repeated(vault: VaultClient, user: str, supabase: SupabaseStack) -> None:
    supabase.faults.answer(503, times=1, when=writes)
    vault.store(user, "google", access_token="one")
    assert vault.reveal(user, "google").access_token == "one"


def test_an_answer_lost_after_the_commit_is_a_success(vault: VaultClient, user: str, supabase: SupabaseStack) -> None:
    version = vault.store(user, "google", access_token="one").version
    supabase.faults.cut_after_commit(times=1, when=writes)
    assert vault.rotate(user, "google", access_token="two").version == version + 1


def test_a_slow_store_is_raised_when_no_time_is_left(
    user: str, supabase: SupabaseStack, supabase_service: tuple[Service, SupabaseStore]
) -> None:
    with vault_client("sync", supabase_service[0], retries=RetryPolicy(seconds=1)) as client:
        supabase.faults.delay(before=30)
        started = time.monotonic()
        with pytest.raises((StoreTimeout, StoreUnavailable)):
            client.reveal(user, "google")
        assert time.monotonic() - started < 15, "the vault's own deadline, once"


@pytest.mark.parametrize("call", [*REPEATABLE, *WRITES])
def test_a_vault_that_cannot_be_connected_to_is_tried_again(user: str, call: str) -> None:
    tried: list[float] = []
    http = httpx.Client(verify=PLAIN_HTTP, trust_env=False, event_hooks={"request": [lambda _: tried.append(0)]})
    with VaultClient(f"http://{LOOPBACK}:{free_port()}", "ptv_x", http=http, retries=FAST) as client:
        with pytest.raises(Unreachable) as raised:
            {**REPEATABLE, **WRITES}[call](client, user)
        assert not raised.value.outcome_unknown
    assert len(tried) == 3


@pytest.mark.parametrize("call", [*REPEATABLE, *WRITES])
def test_a_connection_that_ends_repeats_only_what_is_safe(user: str, call: str) -> None:
    with (
        _vault_that(lambda handler: handler.connection.close()) as (client, requests),
        pytest.raises(Unreachable) as raised,
    ):
        {**REPEATABLE, **WRITES}[call](client, user)
    assert len(requests) == (3 if call in REPEATABLE else 1)
    assert raised.value.outcome_unknown is (call in WRITES or call in {"store", "refresh"})


@pytest.mark.parametrize("call", [*REPEATABLE, *WRITES])
@pytest.mark.parametrize("code", ["key_unavailable", "refresh_in_progress"])
def test_another_retryable_error_repeats_only_what_is_safe(user: str, code: str, call: str) -> None:
    problem = json.dumps({"code": code, "detail": "", "retryable": True}).encode()
    with (
        _vault_that(lambda handler: _reply(handler, 503, problem, "0")) as (client, requests),
        pytest.raises(VaultError) as raised,
    ):
        {**REPEATABLE, **WRITES}[call](client, user)
    assert raised.value.code_received == code
    assert len(requests) == (3 if call in REPEATABLE else 1)


def test_a_vault_without_an_answer_is_not_asked_again_after_ten_seconds() -> None:
    elapsed = DEFAULT_TIMEOUT.read
    assert elapsed is not None
    error = Unreachable("no answer", retryable=True)
    assert RetryPolicy().pause(error, attempt=1, elapsed=elapsed, repeatable=True) is None


@pytest.mark.parametrize("call", [*REPEATABLE, *WRITES])
def test_an_overloaded_vault_has_done_nothing(user: str, call: str) -> None:
    problem = b'{"code": "overloaded", "detail": "", "retryable": true}'
    with (
        _vault_that(lambda handler: _reply(handler, 503, problem, "0")) as (client, requests),
        pytest.raises(Overloaded) as raised,
    ):
        {**REPEATABLE, **WRITES}[call](client, user)
    assert (len(requests), raised.value.outcome_unknown) == (3, False)


def test_a_longer_wait_than_the_policy_allows_is_raised_at_once(user: str) -> None:
    problem = b'{"code": "rate_limited", "detail": "", "retryable": true}'
    with (
        _vault_that(lambda handler: _reply(handler, 429, problem, "3600")) as (client, requests),
        pytest.raises(VaultError) as raised,
    ):
        client.list_for_user(user)
    assert (len(requests), raised.value.retry_after_seconds) == (1, 3600)


def test_a_proxy_too_is_asked_again_only_when_it_says(user: str) -> None:
    with (
        _vault_that(lambda handler: _reply(handler, 503, b"<html>", "3600")) as (client, requests),
        pytest.raises(UnexpectedAnswer) as raised,
    ):
        client.list_for_user(user)
    assert (len(requests), raised.value.retry_after_seconds) == (1, 3600)


def test_a_page_of_a_proxy_is_not_the_vaults_answer(user: str) -> None:
    with (
        _vault_that(lambda handler: _reply(handler, 200, b"<html>sign in</html>", None)) as (client, requests),
        pytest.raises(UnexpectedAnswer) as raised,
    ):
        client.rotate(user, "google", access_token="x")
    assert (len(requests), raised.value.outcome_unknown, raised.value.retryable) == (1, True, False)


FAST = RetryPolicy(seconds=60)


@contextmanager
def _vault_that(answers: Callable[[Any], None]) -> Iterator[tuple[VaultClient, list[str]]]:
    """Run a server that treats each request like this; yields a client of it, and the requests that came."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            requests.append(self.command)
            self.close_connection = True
            answers(self)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815  names of http.server

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests clean."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    http = httpx.Client(verify=PLAIN_HTTP, trust_env=False, timeout=30)
    try:
        with VaultClient(f"http://{LOOPBACK}:{server.server_port}", "ptv_x", http=http, retries=FAST) as client:
            yield client, requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, retry_after: str | None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    if retry_after is not None:
        handler.send_header("Retry-After", retry_after)
    handler.end_headers()
    handler.wfile.write(body)
