"""OAuth libraries that nobody here wrote exchange tokens at the vault: authlib in Python, openid-client under Node."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.api.service import Service, running_service
from tests.support.oauth.oidc import NODE_MODULES
from tests.support.paths import ROOT, STACK
from tests.support.security.user_jwts import ISSUER, SECRET, secret_jwt
from tests.support.stores.stores import SqliteStore

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
DOCUMENT = (ROOT / "docs" / "agents.md").read_text()
USER = str(uuid4())
NODE = shutil.which("node") or str(STACK / "node" / "bin" / "node")
Outcome = dict[str, Any]
Client = Callable[[list[dict[str, Any]]], list[Outcome]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A vault with a Google token of `USER`, which has two scopes."""
    folder = tmp_path_factory.mktemp("exchange-clients")
    settings = {**SqliteStore(folder / "vault.db").environment(), "USER_JWT_ISSUER": ISSUER, "USER_JWT_SECRET": SECRET}
    with running_service(folder, settings) as service:
        with service.client() as client:
            for service_type in ("default", "calendar"):
                path, query = f"/v1/users/{USER}/tokens/google", {"service_type": service_type}
                body = {"access_token": f"ya29.{service_type}", "expires_in": 3600, "scopes": ["a", "b"]}
                assert client.put(path, params=query, json=body).status_code == 201
        yield service


def _node(source: str, **environment: str) -> str:
    if not (NODE_MODULES / "openid-client").exists():
        raise RuntimeError("openid-client is not installed: run `make test`")
    done = subprocess.run(
        [NODE, "--input-type=module"],
        input=source,
        cwd=NODE_MODULES.parent,  # modules are looked up from the current folder
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _python(source: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-"],
        input=source,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _openid_client(requests: list[dict[str, Any]]) -> list[Outcome]:
    script = Path(__file__).parents[1] / "support" / "oauth" / "openid_client.mjs"
    outcomes: list[Outcome] = json.loads(_node(script.read_text(), REQUESTS=json.dumps(requests)))
    return outcomes


def _authlib(requests: list[dict[str, Any]]) -> list[Outcome]:
    script = Path(__file__).parents[1] / "support" / "oauth" / "authlib_client.py"
    outcomes: list[Outcome] = json.loads(_python(script.read_text(), REQUESTS=json.dumps(requests)))
    return outcomes


@pytest.fixture(params=[_authlib, _openid_client], ids=["authlib", "openid-client"])
def client(request: pytest.FixtureRequest) -> Client:
    library: Client = request.param
    return library


def test_a_library_gets_tokens_and_understands_errors(service: Service, client: Client) -> None:
    def asking(*, key: str = "full", key_of: str | None = None, user: str = USER, **changes: Any) -> dict[str, Any]:
        parameters = {
            "grant_type": GRANT,
            "subject_token": secret_jwt(user),
            "subject_token_type": ACCESS_TOKEN,
            "audience": "google",
            **changes,
        }
        secret = service.keys[key_of or key]
        return {"url": f"{service.url}/oauth/token", "service": key, "key": secret, "parameters": parameters}

    outcomes = client(
        [
            asking(),
            asking(audience="google/calendar", scope="a b"),
            asking(key="on_behalf_of"),  # its name has characters that some libraries encode
            asking(scope="a c"),
            asking(audience="notion"),
            asking(subject_token="none"),
            asking(grant_type="client_credentials"),
            asking(key="read"),
            asking(key_of="expired"),
        ]
    )
    tokens = [one.get("token", {}) for one in outcomes[:3]]
    assert [one["access_token"] for one in tokens] == ["ya29.default", "ya29.calendar", "ya29.default"], outcomes
    for token in tokens:
        assert (token["token_type"].lower(), token["issued_token_type"], token["scope"]) == (
            "bearer",
            ACCESS_TOKEN,
            "a b",
        )
        assert 3_000 < token["expires_in"] <= 3_600
    assert [one["error"] for one in outcomes[3:8]] == [
        "invalid_scope",
        "invalid_target",
        "invalid_request",
        "unsupported_grant_type",
        "unauthorized_client",
    ]
    refused = outcomes[8]
    assert refused.get("error") == "invalid_client" or refused["schemes"] == ["basic"]


@pytest.mark.parametrize(("language", "run"), [("python", _python), ("javascript", _node), ("sh", None)])
def test_the_documented_example_prints_the_token(
    service: Service, language: str, run: Callable[..., str] | None
) -> None:
    example = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)[-1]
    source = example.replace("http://127.0.0.1:8080", service.url)
    variables = {"VAULT_SERVICE": "full", "VAULT_KEY": service.keys["full"], "USER_JWT": secret_jwt(USER)}
    if run is not None:
        assert run(source, **variables).startswith("ya29.calendar 3")
        return
    if shutil.which("curl") is None:
        pytest.skip("the example uses curl")
    done = subprocess.run(
        ["bash", "-euc", source],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["access_token"] == "ya29.calendar"
