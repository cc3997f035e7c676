"""Invalid input: each kind gets its problem, changes no row, and is neither repeated in the response nor logged."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore, Store

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
TOKENS = f"/v1/users/{USER}/tokens"
CANVAS = f"{TOKENS}/canvas"
CANARY = "CANARYz9x8SECRETw7v6TOKEN"
_JSON = {"Content-Type": "application/json"}


@pytest.fixture
def served(sqlite_service: tuple[Service, SqliteStore]) -> tuple[Service, Store]:
    """One store is enough, because invalid input never reaches it."""
    sqlite_service[1].truncate()
    return sqlite_service


def _body(**fields: object) -> bytes:
    return json.dumps({"access_token": CANARY, **fields}).encode()


INVALID = {
    "no token": b"{}",
    "empty token": _body(access_token=""),
    "token of 16 385 characters": _body(access_token=CANARY.ljust(16_385, "x")),
    "token that is a number": _body(access_token=1234),
    "token that is null": _body(access_token=None),
    "token that is a list": _body(access_token=[CANARY]),
    "empty refresh token": _body(refresh_token=""),
    "refresh token of 16 385 characters": _body(refresh_token=CANARY.ljust(16_385, "x")),
    "expires_at without offset": _body(expires_at="2027-01-01T00:00:00"),
    "expires_at as a number": _body(expires_at=1_800_000_000),
    "expires_at as a date": _body(expires_at="2027-01-01"),
    "expires_at that is no day": _body(expires_at="2027-02-30T00:00:00Z"),
    "expires_at before the year 1": _body(expires_at="0001-01-01T00:00:00+14:00"),
    "expires_at that is the canary": _body(expires_at=CANARY),
    "both expiries": _body(expires_at="2027-01-01T00:00:00Z", expires_in=60),
    "negative expires_in": _body(expires_in=-1),
    "huge expires_in": _body(expires_in=10**30),
    "expires_in that is a bool": _body(expires_in=True),
    "expires_in that is text": _body(expires_in="60"),
    "http base URL": _body(base_url="http://canvas.example.edu"),
    "base URL with a password": _body(base_url=f"https://user:{CANARY}@canvas.example.edu"),
    "base URL that is the canary": _body(base_url=CANARY),
    "base URL with a newline": _body(base_url="https://x.test\n"),
    "email without @": _body(email=CANARY),
    "email with a separator that only some languages take for a space": _body(email=f"\x1c{CANARY}@example.edu"),
    "scopes as text": _body(scopes=CANARY),
    "scopes with a number": _body(scopes=[1]),
    "scopes with an empty one": _body(scopes=[""]),
    "metadata that is a list": _body(metadata=[CANARY]),
    "metadata that is null": _body(metadata=None),
    "metadata over 8 KiB": _body(metadata={"a": CANARY * 400}),
    **{
        f"metadata that sets {key}": _body(metadata={key: CANARY})
        for key in ("base_url", "status", "encryption_method", "kms_key_id", "status_reason", "encryption_fallback")
    },
    "unknown field": _body(**{CANARY: 1}),
    "unknown field with the canary in it": _body(token=CANARY),
    "a list": json.dumps([CANARY]).encode(),
    "a string": json.dumps(CANARY).encode(),
    "a number": b"1",
    "null": b"null",
}

MALFORMED = {
    "no body": b"",
    "no JSON": CANARY.encode(),
    "half an object": b'{"access_token": "' + CANARY.encode(),
    "two values": _body() + _body(),
    "duplicate keys": b'{"access_token": "a", "access_token": "' + CANARY.encode() + b'"}',
    "duplicate keys in metadata": b'{"access_token": "a", "metadata": {"k": 1, "k": "' + CANARY.encode() + b'"}}',
    "NaN": b'{"access_token": "%s", "metadata": {"a": NaN}}' % CANARY.encode(),
    "Infinity": b'{"access_token": "%s", "metadata": {"a": -Infinity}}' % CANARY.encode(),
    "1e400": b'{"access_token": "%s", "metadata": {"a": 1e400}}' % CANARY.encode(),
    "a number of 5 000 digits": b'{"access_token": "x", "metadata": {"a": %s}}' % (b"1" * 5000),
    "a lone surrogate": b'{"access_token": "%s\\ud800"}' % CANARY.encode(),
    "a lone surrogate in a key": b'{"access_token": "x", "metadata": {"\\udfff": 1}}',
    "a NUL": b'{"access_token": "%s\\u0000"}' % CANARY.encode(),
    "a NUL in metadata": b'{"access_token": "x", "metadata": {"a": ["\\u0000"]}}',
    "a NUL in a key": b'{"access_token": "x", "metadata": {"\\u0000": 1}}',
    "bytes that are not UTF-8": b'{"access_token": "\xff%s"}' % CANARY.encode(),
    "UTF-16": json.dumps({"access_token": CANARY}).encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + _body(),
    "60 000 open brackets": b"[" * 60_000,
    "60 000 open brackets in metadata": b'{"access_token": "x", "metadata": {"a": ' + b"[" * 60_000,
    "33 levels": b'{"access_token": "x", "metadata": {"a": ' + b"[" * 31 + b"]" * 31 + b"}}",
}


def _assert_refused(service: Service, store: Store, send: httpx.Request, status: int, code: str) -> httpx.Response:
    before = store.rows()
    with service.logged() as lines, service.client() as client:
        response = client.send(send)
    problem(response, status, code)
    assert CANARY not in response.text
    assert CANARY not in repr(response.headers)
    assert CANARY not in repr(lines)
    assert lines, "the refusal is logged"
    assert store.rows() == before
    return response


def _request(service: Service, method: str, path: str, body: bytes, **headers: str) -> httpx.Request:
    all_headers = {"Authorization": f"Bearer {service.keys['full']}", **_JSON, **headers}
    return httpx.Request(method, service.url + path, content=body, headers=all_headers)


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_body_is_refused(service: Service, served_store: Store, name: str) -> None:
    with service.client() as client:
        client.put(CANVAS, json={"access_token": "kept"})
    for method, path in (("PUT", CANVAS), ("POST", f"{CANVAS}/rotate")):
        request = _request(service, method, path, INVALID[name])
        response = _assert_refused(service, served_store, request, 422, "invalid_request")
        assert response.json()["errors"], "the problem names the field"


@pytest.mark.parametrize("name", MALFORMED)
def test_a_body_that_is_not_strict_json_is_refused(service: Service, served_store: Store, name: str) -> None:
    request = _request(service, "PUT", CANVAS, MALFORMED[name])
    _assert_refused(service, served_store, request, 400, "malformed_body")


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "", "application/jsonx"],
)
def test_another_content_type_is_refused(service: Service, served_store: Store, content_type: str) -> None:
    request = _request(service, "PUT", CANVAS, _body(), **{"Content-Type": content_type})
    _assert_refused(service, served_store, request, 400, "malformed_body")


def test_a_compressed_body_is_refused(service: Service, served_store: Store) -> None:
    request = _request(service, "PUT", CANVAS, _body(), **{"Content-Encoding": "gzip"})
    _assert_refused(service, served_store, request, 400, "malformed_body")


@pytest.mark.parametrize("size", [64 * 1024 + 1, 200_000])
def test_a_body_over_64_kib_with_content_length_is_refused(service: Service, served_store: Store, size: int) -> None:
    request = _request(service, "PUT", CANVAS, (_body() + b" " * size)[:size])
    _assert_refused(service, served_store, request, 413, "body_too_large")


def test_200_000_open_brackets_are_refused(service: Service, served_store: Store) -> None:
    _assert_refused(service, served_store, _request(service, "PUT", CANVAS, b"[" * 200_000), 413, "body_too_large")


def test_a_body_over_64_kib_without_content_length_is_refused(service: Service, served_store: Store) -> None:
    def chunks() -> list[bytes]:
        return [_body(), *([b" " * 8192] * 9)]

    request = httpx.Request(
        "PUT",
        service.url + CANVAS,
        content=iter(chunks()),
        headers={"Authorization": f"Bearer {service.keys['full']}", **_JSON},
    )
    assert "content-length" not in request.headers
    _assert_refused(service, served_store, request, 413, "body_too_large")


def test_a_body_of_exactly_64_kib_is_read(client: httpx.Client) -> None:
    body = _body().ljust(64 * 1024)
    assert client.put(CANVAS, content=body, headers=_JSON).status_code == 201


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/users/{CANARY}/tokens/canvas",
        f"/v1/users/{USER}x/tokens/canvas",
        f"/v1/users/{{{USER}}}/tokens/canvas",
        f"/v1/users/urn:uuid:{USER}/tokens/canvas",
        f"/v1/users/{USER.replace('-', '')}/tokens/canvas",
        f"/v1/users/{USER}%0a/tokens/canvas",
        f"/v1/users/{USER}/tokens/Canvas",
        f"/v1/users/{USER}/tokens/{CANARY}",
        f"/v1/users/{USER}/tokens/1canvas",
        f"/v1/users/{USER}/tokens/{'a' * 33}",
        f"/v1/users/{USER}/tokens/canvas%0a",
        f"/v1/users/{USER}/tokens/canv%C3%A4s",
        f"/v1/users/{USER}/tokens/canvas?service_type=",
        f"/v1/users/{USER}/tokens/canvas?service_type={CANARY}",
        f"/v1/users/{USER}/tokens/canvas?service_type=a%00b",
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_an_invalid_token_id_is_refused(service: Service, served_store: Store, method: str, path: str) -> None:
    request = _request(service, method, path, _body() if method == "PUT" else b"")
    _assert_refused(service, served_store, request, 422, "invalid_request")


def test_an_unknown_include_is_refused(service: Service, served_store: Store) -> None:
    request = _request(service, "GET", f"{CANVAS}?include={CANARY}", b"")
    _assert_refused(service, served_store, request, 422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"status": "%s"}' % CANARY.encode(),
        b'{"status_reason": "%s"}' % CANARY.encode(),
        b'{"status": "ok", "status_reason": ""}',
        b'{"status": null, "metadata": null}',
        b'{"metadata": {"status": "%s"}}' % CANARY.encode(),
        b'{"metadata": {"kms_key_id": null}}',
        b'{"status": "ok", "access_token": "%s"}' % CANARY.encode(),
        json.dumps({"metadata": {"a": CANARY * 400}}).encode(),
    ],
)
def test_an_invalid_patch_is_refused(service: Service, served_store: Store, body: bytes) -> None:
    with service.client() as client:
        client.put(CANVAS, json={"access_token": "kept"})
    _assert_refused(service, served_store, _request(service, "PATCH", CANVAS, body), 422, "invalid_request")


def test_metadata_over_8_kib_after_a_patch_is_refused(client: httpx.Client, served_store: Store) -> None:
    client.put(CANVAS, json={"access_token": "x", "metadata": {"a": "x" * 5000}})
    before = served_store.rows()
    problem(client.patch(CANVAS, json={"metadata": {"b": "x" * 5000}}), 422, "invalid_request")
    assert served_store.rows() == before


_ONE = {"user_id": USER, "provider": "canvas"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tokens": []},
        {"tokens": [_ONE] * 101},
        {"tokens": _ONE},
        {"tokens": [{"user_id": CANARY, "provider": "canvas"}]},
        {"tokens": [{"user_id": USER, "provider": CANARY}]},
        {"tokens": [{**_ONE, CANARY: 1}]},
        {"tokens": [_ONE], "include": CANARY},
        {"tokens": [None]},
    ],
)
def test_an_invalid_batch_is_refused(service: Service, served_store: Store, body: object) -> None:
    request = _request(service, "POST", "/v1/tokens/batch-get", json.dumps(body).encode())
    _assert_refused(service, served_store, request, 422, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, "route_not_found"),
        ("GET", "/v1/", 404, "route_not_found"),
        ("GET", f"{TOKENS}/", 404, "route_not_found"),
        ("GET", f"{CANVAS}/", 404, "route_not_found"),
        ("GET", "/redoc", 404, "route_not_found"),
        ("POST", CANVAS, 405, "method_not_allowed"),
        ("GET", f"{CANVAS}/rotate", 405, "method_not_allowed"),
    ],
)
def test_an_unknown_route_is_a_problem(client: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    problem(client.request(method, path), status, code)


@pytest.mark.parametrize("raw", [b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" * 20])
def test_bytes_that_are_not_http_do_no_harm(service: Service, raw: bytes) -> None:
    host, port = urlsplit(service.url).hostname, urlsplit(service.url).port
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(raw)
        connection.recv(4096)
    assert httpx.get(f"{service.url}/healthz", trust_env=False, verify=PLAIN_HTTP).status_code == 200


def test_a_caller_that_disconnects_within_the_body_writes_nothing(service: Service, served_store: Store) -> None:
    host, port = urlsplit(service.url).hostname, urlsplit(service.url).port
    head = (
        f"PUT {CANVAS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['full']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    )
    for _ in range(20):
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(head.encode() + _body())
    with service.client() as client:
        assert client.get("/readyz").status_code == 200
    assert served_store.rows() == []
    assert CANARY not in "\n".join(service.lines())


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (CANVAS, "DELETE, GET, PATCH, PUT"),
        (f"{CANVAS}/rotate", "POST"),
        (CANVAS.removesuffix("/canvas"), "DELETE, GET"),
        ("/healthz", "GET"),
    ],
)
def test_allow_names_every_method_of_a_path(client: httpx.Client, path: str, allowed: str) -> None:
    """RFC 9110 §15.5.6; each method of a path is a separate route."""
    assert problem(client.options(path), 405, "method_not_allowed")
    assert client.options(path).headers["allow"] == allowed
