"""The Python client by itself: complete, bounded, and without the service."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
