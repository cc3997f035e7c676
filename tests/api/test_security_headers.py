"""Security headers of every response, and the setting API_DOCS."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from app.config.settings import Settings
from app.main import create_app
from tests.support.api.fixtures import problem
from tests.support.api.service import Service
from tests.support.security.keys import MASTER_KEY
from tests.support.stores.stores import SqliteStore

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/nowhere", 404),
        ("POST", "/healthz", 405),
        ("GET", f"/v1/users/{USER}/tokens", 200),
        ("GET", f"/v1/users/{USER}/tokens/nobody", 404),
        ("GET", "/v1/users/x/tokens/nobody", 422),
        ("PUT", f"/v1/users/{USER}/tokens/canvas", 400),
    ],
)
def test_every_response_has_the_security_headers_once(
    sqlite_service: tuple[Service, SqliteStore], method: str, path: str, status: int
) -> None:
    with sqlite_service[0].client() as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    assert {name: answer.headers.get_list(name) for name in HEADERS} == {name: [it] for name, it in HEADERS.items()}
    assert "strict-transport-security" not in answer.headers, "TLS does not end here"


def test_a_protocol_error_has_the_security_headers(sqlite_service: tuple[Service, SqliteStore]) -> None:
    with sqlite_service[0].client() as client:
        answer = client.get("/healthz", headers={"X-Large": "a" * 40_000})
    assert answer.status_code == 431
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("api_docs", [True, False])
async def test_the_document_can_be_switched_off(tmp_path: Path, *, api_docs: bool) -> None:
    settings = Settings(  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
        _env_file=None, TOKEN_ENCRYPTION_KEY=MASTER_KEY, SQLITE_PATH=str(tmp_path / "vault.db"), API_DOCS=api_docs
    )
    transport = httpx.ASGITransport(create_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://vault") as client:
        answer = await client.get("/openapi.json")
        if api_docs:
            assert answer.json()["openapi"].startswith("3.")
        else:
            problem(answer, 404, "route_not_found")
        for page in ("/docs", "/docs/style.css"):
            assert (await client.get(page)).status_code == (200 if api_docs else 404)
        for page in ("/redoc", "/docs/", "/docs/x"):
            problem(await client.get(page), 404, "route_not_found")
