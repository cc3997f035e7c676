"""The OpenAPI document describes every route, response and error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel, SecretStr

from app import errors
from app.api.answers import json_bytes, revealed_answer, token_answer, unreadable_answer
from app.api.problems import STATUS, Problem
from app.api.schemas.answers import Revealed, Token, UnreadableToken
from app.callers.service_keys import Scope
from app.tokens.models import RevealedToken, UnreadableRow
from tests.support.api.service import Service
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore
from tests.support.stores.stores import token as new_token

TOKEN = "/v1/users/{user_id}/tokens/{provider}"
ROUTES = {
    ("put", "/v1/users/{user_id}/tokens/{provider}"): {200, 201, 400, 401, 403, 412, 413, 422, 429, 500, 503, 504},
    ("get", "/v1/users/{user_id}/tokens/{provider}"): {200, 401, 403, 404, 409, 422, 429, 500, 503, 504},
    ("patch", "/v1/users/{user_id}/tokens/{provider}"): {200, 400, 401, 403, 404, 412, 413, 422, 429, 500, 503, 504},
    ("delete", "/v1/users/{user_id}/tokens/{provider}"): {200, 204, 401, 403, 404, 409, 412, 422, 429, 500, 503, 504},
    ("post", f"{TOKEN}/exchange"): {200, 201, 400, 401, 403, 409, 413, 422, 429, 500, 503, 504},
    ("post", f"{TOKEN}/refresh"): {200, 400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 504},
    ("post", f"{TOKEN}/rotate"): {200, 400, 401, 403, 404, 412, 413, 422, 429, 500, 503, 504},
    ("get", "/v1/users/{user_id}/tokens"): {200, 401, 403, 413, 422, 429, 500, 503, 504},
    ("delete", "/v1/users/{user_id}/tokens"): {200, 401, 403, 409, 422, 429, 500, 503, 504},
    ("get", "/v1/tokens"): {200, 401, 403, 422, 429, 500, 503, 504},
    ("post", "/v1/tokens/batch-get"): {200, 400, 401, 403, 413, 422, 429, 500, 503, 504},
    ("post", "/v1/users/{user_id}/tokens/{provider}/rewrap"): {200, 401, 403, 404, 412, 422, 429, 500, 503, 504},
    ("get", "/v1/encryption"): {200, 401, 403, 422, 429, 500, 503, 504},
    ("post", "/oauth/token"): {200, 400, 401, 413, 429, 500, 503, 504},
    ("get", "/healthz"): {200},
    ("get", "/readyz"): {200, 503},
    ("get", "/metrics"): {200},
}
AUTHENTICATED = ("/v1/", "/oauth/")
OF_ONE_USER = {path for _, path in ROUTES if "{user_id}" in path} | {"/v1/tokens/batch-get"}


@pytest.fixture
def document(sqlite_service: tuple[Service, SqliteStore]) -> Any:
    return httpx.get(f"{sqlite_service[0].url}/openapi.json", trust_env=False, verify=PLAIN_HTTP).json()


def _operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def test_every_route_and_each_of_its_answers_is_described(document: Any) -> None:
    described = {
        (method, path): {int(status) for status in operation["responses"]}
        for method, path, operation in _operations(document)
    }
    assert described == ROUTES


def test_every_problem_is_a_problem_document_with_examples(document: Any) -> None:
    codes = set()
    for _, path, operation in _operations(document):
        for status, answer in operation["responses"].items():
            if int(status) < 400 or path in {"/readyz", "/oauth/token"}:
                continue
            content = answer["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in content["examples"].items():
                assert example["value"]["code"] == code
                assert example["value"]["status"] == int(status)
                codes.add(code)
            assert ("Retry-After" in answer.get("headers", {})) is (status in {"429", "503", "504"})
    assert codes == {error.code for error in STATUS}


def test_every_error_of_the_token_endpoint_has_an_example(document: Any) -> None:
    examples: dict[str, int] = {}
    for status, answer in document["paths"]["/oauth/token"]["post"]["responses"].items():
        if int(status) < 400:
            continue
        assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/TokenError"}
        for error, example in answer["content"]["application/json"]["examples"].items():
            assert example["value"]["error"] == error
            assert example["value"].keys() == document["components"]["schemas"]["TokenError"]["properties"].keys()
            examples[error] = int(status)
    assert examples == {
        "invalid_request": 413,
        "unauthorized_client": 400,
        "invalid_grant": 400,
        "invalid_target": 400,
        "invalid_scope": 400,
        "unsupported_grant_type": 400,
        "invalid_client": 401,
        "server_error": 500,
        "temporarily_unavailable": 504,
    }


def test_every_token_route_names_the_security_scheme(document: Any) -> None:
    schemes = document["components"]["securitySchemes"]
    assert schemes.keys() == {"serviceKey", "serviceBasic", "userJwt"}
    assert (schemes["serviceBasic"]["type"], schemes["serviceBasic"]["scheme"]) == ("http", "basic")
    assert (schemes["serviceKey"]["type"], schemes["serviceKey"]["scheme"]) == ("http", "bearer")
    user_jwt = schemes["userJwt"]
    assert (user_jwt["type"], user_jwt["in"], user_jwt["name"]) == ("apiKey", "header", "X-On-Behalf-Of")
    for _, path, operation in _operations(document):
        assert ("security" in operation) is path.startswith(AUTHENTICATED)
        if path == "/oauth/token":
            assert operation["security"] == [{"serviceKey": []}, {"serviceBasic": []}]
        if path.startswith("/v1/"):
            alternatives: list[dict[str, list[str]]] = [{"serviceKey": []}, {"serviceKey": [], "userJwt": []}]
            assert operation["security"] == alternatives[: 1 + (path in OF_ONE_USER)]
            assert any(scope.value in operation["description"] for scope in Scope)


def test_every_authenticated_route_takes_a_purpose(document: Any) -> None:
    for method, path, operation in _operations(document):
        purposes = [one for one in operation.get("parameters", []) if one["name"] == "X-Purpose"]
        assert len(purposes) == path.startswith(AUTHENTICATED), (method, path)
        for purpose in purposes:
            assert (purpose["in"], purpose.get("required", False)) == ("header", False)
            assert re.search(purpose["schema"]["pattern"], purpose["schema"]["examples"][0])


def test_bodies_and_answers_have_schemas_and_examples(document: Any) -> None:
    schemas = document["components"]["schemas"]
    for method, path, operation in _operations(document):
        if "requestBody" in operation:
            for content in operation["requestBody"]["content"].values():
                assert schemas[content["schema"]["$ref"].rpartition("/")[2]]["examples"], (method, path)
    for name in ("Token", "Revealed", "Receipt", "Erased", "TokenPage", "IssuedToken"):
        assert schemas[name]["examples"]


def test_every_reference_resolves(document: Any) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for child in node.values():
                yield from references(child)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_operations_have_short_names_that_differ(document: Any) -> None:
    names = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+){0,3}", name)] == []
    assert {"store_token", "reveal_token", "patch_token", "rotate_token", "delete_token"} < set(names)


def test_every_example_of_a_request_is_accepted(document: Any, sqlite_service: tuple[Service, SqliteStore]) -> None:
    sqlite_service[1].truncate()
    user, schemas, sent = str(uuid4()), document["components"]["schemas"], set()
    with sqlite_service[0].client() as client:
        for method, path, operation in sorted(_operations(document), key=lambda one: one[0] != "put"):
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                if path.endswith(("/exchange", "/refresh")) or not path.startswith("/v1/"):
                    continue  # of a provider, which tests/api/test_refresh.py has
                for example in schemas[content["schema"]["$ref"].rpartition("/")[2]]["examples"]:
                    url = path.replace("{user_id}", user).replace("{provider}", "google")
                    answer = client.request(method, url, json=example, headers={"Content-Type": media_type})
                    assert answer.is_success, (method, path, answer.text)
                    sent.add((method, media_type))
    assert len(sent) >= 5


def test_examples_of_answers_and_problems_fit_their_schemas(document: Any) -> None:
    schemas = document["components"]["schemas"]
    for model in (Token, Revealed):
        for example in schemas[model.__name__]["examples"]:
            model.model_validate_json(json.dumps(example), strict=True)
            assert {*schemas[model.__name__]["required"]} <= example.keys()
    for _, _, operation in _operations(document):
        for answer in operation["responses"].values():
            for example in answer.get("content", {}).get("application/problem+json", {}).get("examples", {}).values():
                found = Problem.model_validate(example["value"], strict=True)
                assert found.detail
                assert (found.errors is not None) is (found.code == "invalid_request")


def _subclasses(of: type[errors.VaultError]) -> Iterator[type[errors.VaultError]]:
    for one in of.__subclasses__():
        yield one
        yield from _subclasses(one)


def test_every_error_has_a_status() -> None:
    bases = {errors.StoreError, errors.EncryptionError, errors.ProviderError}
    assert set(STATUS) == set(_subclasses(errors.VaultError)) - bases


def test_codes_and_statuses_match_the_contract() -> None:
    assert {error.code: status for error, status in STATUS.items()} == {
        "invalid_request": 422,
        "malformed_body": 400,
        "body_too_large": 413,
        "answer_too_large": 413,
        "unauthenticated": 401,
        "forbidden": 403,
        "audit_unavailable": 503,
        "rate_limited": 429,
        "overloaded": 503,
        "token_not_found": 404,
        "token_inactive": 409,
        "token_referenced": 409,
        "version_conflict": 412,
        "store_unavailable": 503,
        "store_timeout": 504,
        "store_misconfigured": 500,
        "key_unavailable": 503,
        "key_denied": 500,
        "integrity": 500,
        "malformed_ciphertext": 500,
        "provider_unavailable": 503,
        "provider_misconfigured": 500,
        "refresh_in_progress": 503,
        "internal": 500,
    }
    assert {error.code for error in STATUS if error.retryable} == {
        "store_unavailable",
        "store_timeout",
        "key_unavailable",
        "audit_unavailable",
        "rate_limited",
        "overloaded",
        "provider_unavailable",
        "refresh_in_progress",
    }


def test_answers_have_exactly_the_fields_of_their_schemas() -> None:
    token = new_token()
    revealed = RevealedToken(token=token, access_token=SecretStr("a"), refresh_token=None)
    row = UnreadableRow("1", token.token_id, 1, "why")
    expected: list[tuple[dict[str, Any], type[BaseModel], set[str]]] = [
        (token_answer(token, refreshable=False), Token, set()),
        (revealed_answer(revealed, include_refresh=True), Revealed, set()),
        (revealed_answer(revealed, include_refresh=False), Revealed, {"refresh_token"}),
        (unreadable_answer(row, "id"), UnreadableToken, set()),
    ]
    for answer, schema, absent in expected:
        schema.model_validate_json(json_bytes(answer), strict=True)
        assert list(answer) == [name for name in schema.model_fields if name not in absent]
