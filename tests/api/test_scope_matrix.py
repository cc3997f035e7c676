"""Every route with every kind of key: the exact answer, and no write by a refused request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from app.callers.service_keys import Scope, ServiceKey, generate_key, hash_key, render_key_list
from app.config.settings import Settings
from app.main import create_app
from tests.support.api.fixtures import problem
from tests.support.process.home import new_home
from tests.support.process.server import Server, serving
from tests.support.security.keys import MASTER_KEY
from tests.support.security.user_jwts import ISSUER, SECRET, secret_jwt
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stack.reaper import Reaper
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
OTHER_USER = "0b5c2f0e-9d7c-4d0c-8e8f-6f3d9a7b1c2e"
TOKEN = "/v1/users/{user_id}/tokens/{provider}"
BODY = {"access_token": "x"}


@dataclass(frozen=True, slots=True)
class Row:
    """The scopes and the answer of a route; `limited` is its status for a key of another provider."""

    scope: Scope
    status: int
    body: dict[str, Any] | None = None
    limited: int = 403
    query: str = ""
    also: frozenset[Scope] = frozenset()

    @property
    def needs(self) -> frozenset[Scope]:
        return self.also | {self.scope}


_BATCH: dict[str, Any] = {"tokens": [{"user_id": USER, "provider": "canvas"}]}
MATRIX: dict[tuple[str, str], list[Row]] = {
    ("PUT", TOKEN): [Row(Scope.WRITE, 200, BODY)],
    ("GET", TOKEN): [
        Row(Scope.REVEAL, 200),
        Row(Scope.REVEAL, 200, query="?include=refresh_token", also=frozenset({Scope.REVEAL_REFRESH})),
    ],
    ("POST", f"{TOKEN}/exchange"): [Row(Scope.WRITE, 422, {"code": "c", "redirect_uri": "https://api.example/cb"})],
    ("POST", f"{TOKEN}/refresh"): [
        Row(Scope.REVEAL, 200, {"rejected_version": 1}, also=frozenset({Scope.REFRESH})),
    ],
    ("PATCH", TOKEN): [Row(Scope.WRITE, 200, {"metadata": {"a": 1}})],
    ("POST", f"{TOKEN}/rotate"): [Row(Scope.WRITE, 200, BODY)],
    ("POST", f"{TOKEN}/rewrap"): [Row(Scope.ADMIN, 200)],
    ("DELETE", TOKEN): [Row(Scope.DELETE, 204), Row(Scope.DELETE, 200, query="?revoke=true")],
    ("GET", "/v1/users/{user_id}/tokens"): [Row(Scope.READ, 200, limited=200)],
    ("DELETE", "/v1/users/{user_id}/tokens"): [
        Row(Scope.DELETE, 200),
        Row(Scope.DELETE, 200, query="?revoke=true"),
    ],
    ("GET", "/v1/tokens"): [Row(Scope.READ, 200, limited=200)],
    ("POST", "/v1/tokens/batch-get"): [
        Row(Scope.REVEAL, 200, _BATCH, limited=200),
        Row(
            Scope.REVEAL,
            200,
            {**_BATCH, "include": "refresh_token"},
            limited=200,
            also=frozenset({Scope.REVEAL_REFRESH}),
        ),
    ],
    ("GET", "/v1/encryption"): [Row(Scope.ADMIN, 200)],
}
OF_ALL_USERS = {"/v1/encryption", "/v1/tokens"}
DOCS = {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/docs/style.css")}
OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), *DOCS}
ELSEWHERE = {("POST", "/oauth/token")}  # tests/api/test_token_endpoint.py
EVERY = frozenset(Scope)
OWN_JWT = {"on behalf of, with the user's JWT", "every scope, with the user's JWT"}
JWTS: dict[str, str | None] = {
    "on behalf of, with the user's JWT": secret_jwt(USER),
    "on behalf of, with another user's JWT": secret_jwt(OTHER_USER),
    "on behalf of, with an expired JWT": secret_jwt(USER, exp=1_700_000_000),
    "on behalf of, with a JWT of another secret": secret_jwt(USER, SECRET[::-1]),
    "on behalf of, without a JWT": None,
    "every scope, with the user's JWT": secret_jwt(USER),
    "every scope, with another user's JWT": secret_jwt(OTHER_USER),
}
KEYS: dict[str, dict[str, Any]] = {
    "every scope": {"scopes": EVERY},
    **{f"only {scope}": {"scopes": frozenset({scope})} for scope in Scope},
    **{f"all but {scope}": {"scopes": EVERY - {scope}} for scope in Scope},
    "every scope, of another provider": {"scopes": EVERY, "providers": frozenset({"google"})},
    "every scope, of this provider": {"scopes": EVERY, "providers": frozenset({"canvas"})},
    **{kind: {"scopes": EVERY, "on_behalf_of": "required"} for kind in JWTS if kind.startswith("on behalf of")},
    **{kind: {"scopes": EVERY} for kind in JWTS if not kind.startswith("on behalf of")},
    "expired": {"scopes": EVERY, "expires_at": datetime.now(UTC) - timedelta(seconds=1)},
    "revoked": {"scopes": EVERY},
}
STRANGERS = {"unknown": generate_key(), "malformed": "ptv_short", "none": "", "upper case": generate_key().upper()}
ROWS = [(*route, number) for route, rows in MATRIX.items() for number in range(len(rows))]


@dataclass(frozen=True, slots=True)
class Vault:
    server: Server
    store: SqliteStore
    keys: dict[str, str]
    file: Path

    client: httpx.Client

    def request(self, kind: str, method: str, url: str, body: object = None) -> httpx.Response:
        key, jwt = (self.keys | STRANGERS)[kind], JWTS.get(kind)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if jwt is not None:
            headers["X-On-Behalf-Of"] = jwt
        return self.client.request(method, url, json=body, headers=headers)


def _write(file: Path, keys: dict[str, str]) -> None:
    entries = [ServiceKey(service="tests", sha256=hash_key(key), **KEYS[kind]) for kind, key in keys.items()]
    draft = file.with_suffix(".new")
    draft.write_text(render_key_list(entries))
    draft.replace(file)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory, stack_reaper: Reaper) -> Iterator[Vault]:
    """A running vault; the key `revoked` was live when it started and has been removed from the file since."""
    folder = tmp_path_factory.mktemp("matrix")
    file, keys = folder / "service-keys.json", {kind: generate_key() for kind in KEYS}
    _write(file, keys)
    home = new_home(
        folder,
        SERVICE_KEYS="",
        SERVICE_KEYS_FILE=str(file),
        TOKEN_ENCRYPTION_KEY=MASTER_KEY,
        USER_JWT_ISSUER=ISSUER,
        USER_JWT_SECRET=SECRET,
    )
    with (
        serving(home, reaper=stack_reaper) as server,
        httpx.Client(base_url=server.url, trust_env=False, verify=PLAIN_HTTP) as client,
    ):
        running = Vault(server, SqliteStore(folder / "data" / "vault.db"), keys, file, client)
        assert running.request("revoked", "GET", f"/v1/users/{USER}/tokens").status_code == 200
        _write(file, {kind: key for kind, key in keys.items() if kind != "revoked"})
        eventually(lambda: running.request("revoked", "GET", f"/v1/users/{USER}/tokens").status_code == 401)
        yield running


def _routes(app: Any) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route | APIRoute)
        for method in (route.methods or ())
        if method != "HEAD"
    }


def test_every_route_of_the_application_is_in_the_matrix(tmp_path: Path) -> None:
    settings = Settings(  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
        _env_file=None, TOKEN_ENCRYPTION_KEY=MASTER_KEY, SQLITE_PATH=str(tmp_path / "vault.db")
    )
    app = create_app(settings)
    assert all(isinstance(route, Route | APIRoute) for route in app.routes), "nothing else is mounted"
    assert set(MATRIX) <= _routes(app) <= set(MATRIX) | OPEN | ELSEWHERE


def _expected(row: Row, kind: str) -> tuple[int, str | None]:
    if kind in STRANGERS or kind in {"expired", "revoked"}:
        return 401, "unauthenticated"
    if not row.needs <= KEYS[kind]["scopes"]:
        return 403, "forbidden"
    if kind in JWTS and kind not in OWN_JWT:
        return 403, "forbidden"
    if kind == "every scope, of another provider" and row.limited == 403:
        return 403, "forbidden"
    return row.status, None


@pytest.mark.parametrize(("method", "path", "number"), ROWS)
def test_every_kind_of_key_gets_exactly_its_answer(vault: Vault, method: str, path: str, number: int) -> None:
    row = MATRIX[method, path][number]
    url = path.format(user_id=USER, provider="canvas") + row.query
    concerns_all = path == "/v1/encryption" or (method, path) == ("DELETE", "/v1/users/{user_id}/tokens")
    for kind in KEYS | STRANGERS:
        stored = {"access_token": "before", "refresh_token": "r"}
        vault.request("every scope", "PUT", f"/v1/users/{USER}/tokens/canvas", stored)
        before = vault.store.rows()
        answer = vault.request(kind, method, url, row.body)
        status, code = _expected(row, kind)
        if concerns_all and KEYS.get(kind, {}).get("providers"):
            status, code = 403, "forbidden"
        if path in OF_ALL_USERS and kind in JWTS:
            status, code = 403, "forbidden"
        assert answer.status_code == status, (kind, answer.text)
        if code is not None:
            problem(answer, status, code)
            assert vault.store.rows() == before, f"{kind} was refused but has written"
        elif kind == "every scope, of another provider":
            _nothing_of_another_provider(answer)


def _nothing_of_another_provider(answer: httpx.Response) -> None:
    """A list or a batch answers without the tokens that the key may not use."""
    assert "before" not in answer.text
    body = answer.json()
    assert body.get("tokens") == [] or [one["problem"]["code"] for one in body["results"]] == ["forbidden"]


@pytest.mark.parametrize(("method", "path"), sorted(OPEN - {("GET", "/metrics")}))
def test_open_routes_answer_every_kind_of_key(vault: Vault, method: str, path: str) -> None:
    for kind in KEYS | STRANGERS:
        assert vault.request(kind, method, path).status_code == 200
