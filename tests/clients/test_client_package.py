"""The Python client by itself: complete, bounded, and without the service."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import token_vault_client
from token_vault_client import TokenCache, TokenId, VaultClient, errors

from app.api.problems import STATUS
from scripts.write_openapi import OPENAPI_FILE
from tests.support.paths import ROOT

# the client's name of each operation; the last two are for orchestrators and for Prometheus
OPERATIONS = {
    "store_token": "store",
    "reveal_token": "reveal",
    "patch_token": "patch",
    "delete_token": "delete",
    "refresh_rejected_token": "refresh",
    "exchange_code": "exchange",
    "rotate_token": "rotate",
    "rewrap_token": "rewrap",
    "list_user_tokens": "list_for_user",
    "list_all_tokens": "list_page",
    "erase_user": "erase_user",
    "batch_get_tokens": "batch_get",
    "encryption_status": "encryption_status",
    "exchange_token": "exchange_token",
    "readyz": "readiness",
    "healthz": None,
    "metrics": None,
}


def test_the_cache_is_bounded_and_forgets_by_age() -> None:
    def token(number: int) -> token_vault_client.RevealedToken:
        members: dict[str, Any] = dict.fromkeys(token_vault_client.Token.__slots__)
        return token_vault_client.RevealedToken(**{**members, "version": number}, access_token="a")

    cache = TokenCache(maximum_tokens=2)
    for number in range(3):
        cache.put(TokenId("u", f"p{number}"), token(number))
    assert [cache.get(TokenId("u", f"p{number}")) is not None for number in range(3)] == [False, True, True]
    aged = TokenCache(maximum_age_seconds=0)
    aged.put(TokenId("u", "p"), token(1))
    assert aged.get(TokenId("u", "p")) is None


def test_every_operation_of_the_api_has_a_method() -> None:
    paths = json.loads(OPENAPI_FILE.read_text())["paths"].values()
    assert {operation["operationId"] for path in paths for operation in path.values()} == OPERATIONS.keys()
    for client in (VaultClient, token_vault_client.AsyncVaultClient):
        for name in filter(None, OPERATIONS.values()):
            assert inspect.getdoc(getattr(client, name)), name


def test_every_error_code_of_the_api_has_a_class() -> None:
    own = {token_vault_client.Unreachable.code, token_vault_client.UnexpectedAnswer.code}
    assert {error.code for error in STATUS} <= errors.BY_CODE.keys() - own
    assert {getattr(token_vault_client, one.__name__) for one in errors.BY_CODE.values()} == {*errors.BY_CODE.values()}


def test_a_code_that_the_client_does_not_know_is_an_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(409, json={"code": "new_code", "detail": "why"}))
    with VaultClient("http://vault.test", "ptv_x", http=httpx.Client(transport=transport)) as client:
        with pytest.raises(token_vault_client.VaultError) as raised:
            client.list_for_user("u")
        assert (raised.value.code_received, type(raised.value)) == ("new_code", token_vault_client.VaultError)


def test_the_client_needs_httpx_and_not_the_service(tmp_path: Path) -> None:
    """A wheel of it, imported where neither the repository nor the service can be."""
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    copied = tmp_path / "client"
    for file in (ROOT / "client").rglob("*"):
        if file.suffix in {".py", ".toml", ".md", ".typed"}:
            target = copied / file.relative_to(ROOT / "client")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    variables = {"PATH": os.environ["PATH"]}
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=copied, env=variables, check=True, capture_output=True
    )
    [wheel] = tmp_path.glob("pulseplan_token_vault_client-*.whl")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import token_vault_client, importlib.util as u;"
        "assert token_vault_client.__file__.startswith(sys.argv[1]);"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "assert 'app' not in loaded and not loaded & {'pydantic', 'fastapi', 'aiohttp'}, loaded;"
        "assert u.find_spec('token_vault_client') and 'token_vault_client/py.typed' in"
        " __import__('zipfile').ZipFile(sys.argv[1]).namelist()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(wheel)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


SECRET = "ya29.a-secret-4711"
KEY = "ptv_a-service-key-4711"
USER = str(uuid4())
CALLS: dict[str, Any] = {
    "store": {"access_token": SECRET},
    "store_token_response": {"answer": {"access_token": SECRET}},
    "reveal": {},
    "patch": {"status": "ok"},
    "delete": {"revoke": "true"},
    "refresh": {"rejected_version": 1},
    "exchange": {"code": SECRET, "redirect_uri": "https://x.test"},
    "rotate": {"access_token": SECRET},
    "rewrap": {},
}


def _client(answer: Any, **options: Any) -> VaultClient:
    http = httpx.Client(transport=httpx.MockTransport(answer), timeout=20)
    return VaultClient("http://vault.test", KEY, http=http, **options)


@pytest.mark.parametrize("body", ["", "[]", "{}", "null", "1", '"x"', '[{"access_token": "x"}]', "<html>"])
def test_a_success_with_another_body_is_not_the_vaults_answer(body: str) -> None:
    with _client(lambda _: httpx.Response(200, text=body)) as client:
        calls: dict[str, Callable[[], object]] = {
            **{name: partial(getattr(client, name), USER, "google", **CALLS[name]) for name in CALLS},
            **{name: partial(getattr(client, name), USER) for name in ("list_for_user", "erase_user")},
            **{name: getattr(client, name) for name in ("list_page", "encryption_status", "readiness")},
            "batch_get": partial(client.batch_get, []),
            "exchange_token": partial(client.exchange_token, "a.b.c", "google"),
        }
        for name, call in calls.items():
            if name == "delete" and body in {"", "null"}:
                continue  # as a deletion without a receipt
            with pytest.raises(token_vault_client.UnexpectedAnswer):
                call()


def test_no_variable_of_the_client_shows_a_secret_in_a_traceback() -> None:
    answer = {"access_token": SECRET, "refresh_token": SECRET, "min_ttl_met": True}
    with (
        _client(lambda _: httpx.Response(200, json=answer)) as client,
        pytest.raises(token_vault_client.UnexpectedAnswer) as raised,
    ):
        client.on_behalf_of("a-jwt-4711").reveal(USER, "google", include_refresh_token=True)
    assert raised.value.__context__ is None
    frames = [frame for frame, _ in traceback.walk_tb(raised.value.__traceback__)]
    of_client = [frame.f_locals for frame in frames if "token_vault_client" in frame.f_code.co_filename]
    assert len(of_client) >= 3
    assert "4711" not in repr(of_client)


def test_errors_survive_pickling_and_tokens_refuse_it() -> None:
    problem = {"code": "version_conflict", "detail": "why", "request_id": "r", "errors": []}
    before = errors.error_of(problem, status=412, outcome_unknown=True)
    after = pickle.loads(pickle.dumps(before))  # noqa: S301  our own
    assert (type(after), str(after), vars(after)) == (type(before), "version_conflict: why", vars(before))
    members: dict[str, Any] = dict.fromkeys(token_vault_client.Token.__slots__)
    issued = token_vault_client.IssuedToken(SECRET, 1, ())
    for secret in (token_vault_client.RevealedToken(**members, access_token=SECRET), issued):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(secret)


@pytest.mark.parametrize("value", ["", f"{SECRET}\n", f" {SECRET}", f"Bearer {SECRET}", f"{SECRET}\u00e9"])
def test_a_key_that_no_header_carries_is_refused_without_showing_it(value: str) -> None:
    attempts: list[Any] = [
        lambda: VaultClient("http://vault.test", value),
        lambda: _client(None).on_behalf_of(value),
        lambda: _client(None).for_purpose(value),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="no header carries") as raised:
            attempt()
        assert SECRET not in repr(raised.value)


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="holds a user name or password") as raised:
        VaultClient(f"https://user:{SECRET}@vault.test", "key")
    assert SECRET not in repr(raised.value)


def test_a_deletion_never_addresses_more_than_one_token() -> None:
    with _client(lambda _: httpx.Response(204)) as client:
        for provider in ("", ".", ".."):
            with pytest.raises(ValueError, match="provider is empty"):
                client.delete(USER, provider)
        with pytest.raises(ValueError, match="user_id is empty"):
            client.erase_user("")


def test_a_call_that_works_at_a_provider_has_a_minute() -> None:
    waits: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return httpx.Response(403, json={"code": "forbidden"})

    with _client(answer) as client:
        for call in (
            lambda: client.reveal(USER, "google"),
            lambda: client.delete(USER, "google"),
            lambda: client.exchange(USER, "google", code="c", redirect_uri="https://x.test"),
            lambda: client.delete(USER, "google", revoke="true"),
            lambda: client.erase_user(USER, revoke="required"),
        ):
            with pytest.raises(token_vault_client.Forbidden):
                call()
    assert waits == [20, 20, 60, 60, 60]


def _revealed(secret: str, version: int) -> httpx.Response:
    members: dict[str, Any] = dict.fromkeys(token_vault_client.Token.__slots__)
    return httpx.Response(
        200, json={**members, "scopes": [], "version": version, "access_token": secret, "min_ttl_met": True}
    )


def test_a_token_that_was_asked_for_before_a_write_is_not_kept() -> None:
    reads: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(204)
        reads.append(1)
        if len(reads) == 1:
            client.delete(USER.upper(), "google")  # of another thread, while this answer is on its way
        return _revealed("one" if len(reads) == 1 else "two", len(reads))

    with _client(answer, cache=TokenCache()) as client:
        assert [client.reveal(USER, "google").access_token for _ in range(3)] == ["one", "two", "two"]
        client.delete(USER.upper(), "google")
        client.reveal(USER, "google")
    assert len(reads) == 3, "the second one was kept until the deletion, however the user's id is spelt"


def test_a_write_that_is_interrupted_leaves_the_cache() -> None:
    reads: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            raise KeyboardInterrupt
        reads.append(1)
        return _revealed("one", 1)

    with _client(answer, cache=TokenCache()) as client:
        client.reveal(USER, "google")
        with pytest.raises(KeyboardInterrupt) as interrupted:  # whose traceback a handler holds for a while
            client.delete(USER, "google")
        client.reveal(USER, "google")
    assert interrupted.value.__traceback__ is not None
    assert len(reads) == 2
