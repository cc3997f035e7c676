"""`POST /oauth/token`: token exchange as RFC 8693 and RFC 6749 describe it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode
from uuid import uuid4

import httpx
import pytest

from tests.support.api.service import Service, running_service
from tests.support.audit.trails import KEY_TEXT, files, members, verified
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.observability.exposed import scraped
from tests.support.security.user_jwts import ISSUER, SECRET, secret_jwt
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
JWT = "urn:ietf:params:oauth:token-type:jwt"
PAST = "2026-01-01T00:00:00Z"
PATH = "/oauth/token"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A served vault whose provider is `acme`."""

    service: Service
    provider: OAuthStandIn
    audit: Path

    def ask(
        self, user: str, *, key: str = "full", headers: dict[str, str] | None = None, **changes: Any
    ) -> httpx.Response:
        """Ask for the user's token at acme; `changes` replace parameters, and `None` leaves one out."""
        parameters = {
            "grant_type": GRANT,
            "subject_token": secret_jwt(user),
            "subject_token_type": ACCESS_TOKEN,
            "audience": "acme",
            **changes,
        }
        return self.post(
            {name: value for name, value in parameters.items() if value is not None}, headers or self.bearer(key)
        )

    def post(self, parameters: Any, headers: dict[str, str]) -> httpx.Response:
        with httpx.Client(base_url=self.service.url, timeout=60, trust_env=False, verify=PLAIN_HTTP) as client:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            body = parameters if isinstance(parameters, bytes) else urlencode(parameters).encode()
            return client.post(PATH, content=body, headers=form | headers)

    def bearer(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.service.keys[key]}"}

    def basic(self, name: str, secret: str) -> dict[str, str]:
        pair = f"{quote_plus(name)}:{quote_plus(secret)}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}

    def store(self, *, provider: str = "acme", service_type: str = "default", **body: Any) -> str:
        """Store a token of a new user, which lives for an hour unless `body` says otherwise; return the user."""
        user = str(uuid4())
        with self.service.client() as client:
            given = {"access_token": f"at-of-{user}", **body}
            if "expires_at" not in given:
                given.setdefault("expires_in", 3600)
            answer = client.put(
                f"/v1/users/{user}/tokens/{provider}", params={"service_type": service_type}, json=given
            )
            assert answer.status_code == 201, answer.text
        return user

    def events(self, answer: httpx.Response) -> list[dict[str, Any]]:
        """Return the audit events of one call."""
        request_id = answer.headers["x-request-id"]
        return [one for one in members(files(self.audit)) if one.get("request_id") == request_id]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("token-endpoint")
    with oauth_stand_in() as provider:
        settings = {
            **SqliteStore(folder / "vault.db").environment(),
            "USER_JWT_ISSUER": ISSUER,
            "USER_JWT_SECRET": SECRET,
            "OAUTH_PROVIDERS": json.dumps({"acme": provider.entry()}),
            "AUDIT_LOG": "audit/audit.jsonl",
            "AUDIT_KEY": KEY_TEXT,
        }
        with running_service(folder, settings) as service:
            yield Endpoint(service, provider, folder / "audit")
            log = service.log.read_text()
    trail = b"".join(path.read_bytes() for path in files(folder / "audit")).decode()
    assert verified(files(folder / "audit")).is_intact
    for text in (log, trail):
        assert "eyJ" not in text, "a JWT begins like this"
        assert "of-the-stand-in" not in text, "each of the provider's tokens ends like this"
        assert "at-of-" not in text, "each stored token begins like this"
        assert not [key for key in service.keys.values() if key in text]


@pytest.fixture
def endpoint(running: Endpoint) -> Endpoint:
    running.provider.always(None)
    return running


def refused(answer: httpx.Response, error: str, *, code: str, status: int = 400) -> dict[str, str]:
    """Assert that an answer is this error with every member and header of one; return its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    body: dict[str, str] = answer.json()
    assert (body["error"], body["code"]) == (error, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    assert set(body["error_description"]) <= {chr(one) for one in range(0x20, 0x7F)} - {'"', "\\"}
    assert ("www-authenticate" in answer.headers) is (status == 401)
    assert ("retry-after" in answer.headers) is (status in {429, 503, 504})
    return body


def test_the_users_jwt_is_exchanged_for_the_providers_token(endpoint: Endpoint) -> None:
    user = endpoint.store(scopes=["a", "b"])
    answer = endpoint.ask(user)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert 3_500 < body.pop("expires_in") <= 3_600
    assert body == {
        "access_token": f"at-of-{user}",
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "scope": "a b",
    }
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    (event,) = endpoint.events(answer)
    assert (event["operation"], event["outcome"], event["service"]) == ("reveal", "success", "full")
    assert (event["user_id"], event["provider"], event["on_behalf_of"]) == (user, "acme", user)
    assert event["revealed"] == ["access_token"]


def test_an_expired_token_is_refreshed_first(endpoint: Endpoint) -> None:
    user = endpoint.store(refresh_token=endpoint.provider.seed(), expires_at=PAST)
    with endpoint.service.client() as client, endpoint.service.logged() as lines:
        before = scraped(client)
        answer = endpoint.ask(user)
        after = scraped(client)
    assert answer.json()["access_token"].startswith("at-")
    assert answer.json()["access_token"] != f"at-of-{user}"
    assert answer.json()["expires_in"] > 3_000
    events = [(one["operation"], one["outcome"], one["on_behalf_of"]) for one in endpoint.events(answer)]
    assert events == [("refresh", "success", user), ("reveal", "success", user)]
    grown = after.increase(before, "token_vault_refreshes_total")
    assert grown == {frozenset({("provider", "acme"), ("outcome", "success")}): 1}
    refresh, exchange = (line for line in lines if line.get("route") != "/metrics")
    assert (refresh["event"], refresh["operation"], refresh["outcome"]) == ("token_operation", "refresh", "success")
    assert (exchange["event"], exchange["operation"], exchange["route"]) == ("request", "reveal", PATH)
    assert all(
        (line["user_id"], line["provider"], line["service"]) == (user, "acme", "full") for line in (refresh, exchange)
    )


def test_an_audience_may_name_the_service_type(endpoint: Endpoint) -> None:
    user = endpoint.store(service_type="calendar")
    assert endpoint.ask(user, audience="acme/calendar").json()["access_token"] == f"at-of-{user}"
    refused(endpoint.ask(user), "invalid_target", code="token_not_found")


def test_what_the_vault_does_not_know_is_left_out(endpoint: Endpoint) -> None:
    user = endpoint.store(provider="notion", expires_at=None)
    assert endpoint.ask(user, audience="notion").json().keys() == {"access_token", "issued_token_type", "token_type"}


def test_expires_in_is_never_zero(endpoint: Endpoint) -> None:
    """A client library takes 0 for a token without an end."""
    user, given = endpoint.store(expires_in=2), []
    while (answer := endpoint.ask(user)).status_code == 200:
        given.append(answer.json()["expires_in"])
        time.sleep(0.1)
    refused(answer, "invalid_grant", code="token_inactive")
    assert {*given} <= {1, 2}


@pytest.mark.parametrize("scope", ["a", "a b", "b  a", ""])
def test_granted_scopes_are_enough(endpoint: Endpoint, scope: str) -> None:
    assert endpoint.ask(endpoint.store(scopes=["a", "b", "c"]), scope=scope).json()["scope"] == "a b c"


@pytest.mark.parametrize("granted", [["a"], [], ["ab"]])
def test_a_scope_that_was_not_granted_reveals_nothing(endpoint: Endpoint, granted: list[str]) -> None:
    user = endpoint.store(scopes=granted)
    answer = endpoint.ask(user, scope="a b")
    refused(answer, "invalid_scope", code="invalid_request")
    assert "at-of" not in answer.text
    (event,) = endpoint.events(answer)
    assert (event["operation"], event["outcome"], event["user_id"]) == ("reveal", "invalid_request", user)
    assert "revealed" not in event or not event["revealed"]


def test_a_client_authenticates_with_basic_or_bearer(endpoint: Endpoint) -> None:
    user, key = endpoint.store(), endpoint.service.keys["full"]
    assert endpoint.ask(user, headers=endpoint.bearer("full")).status_code == 200
    assert endpoint.ask(user, headers=endpoint.basic("full", key)).status_code == 200
    # RFC 6749, section 2.3.1: some libraries encode every character that is no letter
    pair = "".join(f"%{ord(one):02X}" for one in "full") + ":" + "".join(f"%{ord(one):02X}" for one in key)
    encoded = {"Authorization": f"basic {base64.b64encode(pair.encode()).decode()}"}
    assert endpoint.ask(user, headers=encoded).status_code == 200


def test_a_wrong_client_is_invalid_client(endpoint: Endpoint) -> None:
    user, keys = endpoint.store(), endpoint.service.keys
    basics = [
        endpoint.basic("other", keys["full"]),
        endpoint.basic("FULL", keys["full"]),
        endpoint.basic("", keys["full"]),
        endpoint.basic("full", ""),
        endpoint.basic("full", keys["full"][:-1]),
        endpoint.basic("expired", keys["expired"]),
        {"Authorization": "Basic"},
        {"Authorization": "Basic !"},
        {"Authorization": f"Basic {base64.b64encode(b'full').decode()}"},
        {"Authorization": f"Basic {base64.b64encode(b'full:' + bytes([0xFF])).decode()}"},
        {"Authorization": ""},
        {},
    ]
    bearers = [endpoint.bearer("expired"), {"Authorization": f"Bearer {secret_jwt(user)}"}]
    (event,) = endpoint.events(endpoint.post({}, basics[0]))
    assert (event["operation"], event["outcome"]) == ("reveal", "unauthenticated")
    for headers in basics:
        answer = endpoint.post({"grant_type": GRANT}, headers)
        refused(answer, "invalid_client", code="unauthenticated", status=401)
        assert answer.headers["www-authenticate"].startswith("Basic ")
    for headers in bearers:
        answer = endpoint.post({"grant_type": GRANT}, headers)
        refused(answer, "invalid_client", code="unauthenticated", status=401)
        assert answer.headers["www-authenticate"].startswith("Bearer ")


def test_a_key_without_the_scope_is_an_unauthorized_client(endpoint: Endpoint) -> None:
    user = endpoint.store()
    for key in endpoint.service.keys.keys() - {"full", "canvas", "on_behalf_of", "expired", "reveal"}:
        refused(endpoint.ask(user, key=key), "unauthorized_client", code="forbidden")
    for key in ("reveal", "on_behalf_of"):
        assert endpoint.ask(user, key=key).status_code == 200


def test_a_key_of_other_providers_reaches_none(endpoint: Endpoint) -> None:
    user = endpoint.store()
    before = _denials(endpoint)
    answer = endpoint.ask(user, key="canvas")
    refused(answer, "invalid_target", code="forbidden")
    (event,) = endpoint.events(answer)
    assert (event["outcome"], event["user_id"], event["provider"], event["on_behalf_of"]) == (
        "forbidden",
        user,
        "acme",
        user,
    )
    assert _denials(endpoint) == before + 1


def _denials(endpoint: Endpoint) -> float:
    with endpoint.service.client() as client:
        return scraped(client).value("token_vault_denials_total", service="canvas", code="forbidden")


@pytest.mark.parametrize(
    ("audience", "error"),
    [
        ("canvas", "invalid_target"),
        ("acme/other", "invalid_target"),
        ("ACME", "invalid_target"),
        ("acme/", "invalid_target"),
        ("/acme", "invalid_target"),
        ("acme/x/y", "invalid_target"),
        ("https://acme.example", "invalid_target"),
        ("acme\n", "invalid_target"),
        ("a" * 33, "invalid_target"),
        ("", "invalid_request"),
        (None, "invalid_request"),
    ],
)
def test_an_audience_without_a_token_is_an_invalid_target(endpoint: Endpoint, audience: str | None, error: str) -> None:
    answer = endpoint.ask(endpoint.store(), audience=audience)
    code = "token_not_found" if audience in {"canvas", "acme/other"} else "invalid_request"
    refused(answer, error, code=code)


def test_only_the_users_own_valid_jwt_is_a_subject_token(endpoint: Endpoint) -> None:
    user = endpoint.store()
    now = int(time.time())
    wrong = [
        secret_jwt(user, exp=now - 3_600),
        secret_jwt(user, SECRET[::-1]),
        secret_jwt(user, iss="https://other.example"),
        secret_jwt(user, aud="anon"),
        secret_jwt("not-a-uuid"),
        f"Bearer {secret_jwt(user)}",
        user,
        "x" * 20_000,
        "eyJhbGciOiJub25lIn0.e30.",
        endpoint.service.keys["full"],
    ]
    for subject in wrong:
        answer = endpoint.ask(user, subject_token=subject)
        refused(answer, "invalid_request", code="forbidden")
        assert subject not in answer.text
    refused(endpoint.ask(str(uuid4())), "invalid_target", code="token_not_found")
    assert endpoint.ask(user, subject_token_type=JWT).status_code == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": None}, "invalid_request"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": "authorization_code", "code": "c"}, "unsupported_grant_type"),
        ({"subject_token": None}, "invalid_request"),
        ({"subject_token": ""}, "invalid_request"),
        ({"subject_token_type": None}, "invalid_request"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
        ({"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "invalid_request"),
        ({"actor_token": "x", "actor_token_type": JWT}, "invalid_request"),
        ({"client_id": "full", "client_secret": "x"}, "invalid_request"),
        ({"client_assertion": "x", "client_assertion_type": f"{JWT}-bearer"}, "invalid_request"),
        ({"resource": "https://acme.example"}, "invalid_target"),
        ({"scope": "s" * 5_000}, "invalid_request"),
    ],
)
def test_a_request_that_the_vault_cannot_serve_is_refused(
    endpoint: Endpoint, changes: dict[str, Any], error: str
) -> None:
    answer = endpoint.ask(endpoint.store(), **changes)
    refused(answer, error, code="invalid_request")
    (event,) = endpoint.events(answer)
    assert (event["operation"], event["outcome"], event["service"]) == ("reveal", "invalid_request", "full")


def test_repeated_parameters_are_refused(endpoint: Endpoint) -> None:
    user = endpoint.store()
    right = {
        "grant_type": GRANT,
        "subject_token": secret_jwt(user),
        "subject_token_type": ACCESS_TOKEN,
        "audience": "acme",
        "scope": "",
        "unknown": "ignored",
    }
    assert endpoint.post(right, endpoint.bearer("full")).status_code == 200
    for name, value in right.items():
        error = "invalid_target" if name == "audience" else "invalid_request"
        for again in (value, "", "other"):
            answer = endpoint.post([*right.items(), (name, again)], endpoint.bearer("full"))
            refused(answer, error, code="invalid_request")


def test_a_body_of_another_form_is_refused(endpoint: Endpoint) -> None:
    key = endpoint.bearer("full")
    bodies = [b"", b"grant_type", b"grant_type=%FF", b"grant_type=\xc3\xa9", b"&".join(b"a%d=1" % n for n in range(40))]
    for body in bodies:
        assert refused(
            endpoint.post(body, key), "invalid_request", code="malformed_body" if body else "invalid_request"
        )
    for media_type in ("application/json", "text/plain", "application/x-www-form-urlencoded; charset=latin-1"):
        answer = endpoint.post(b"{}", key | {"Content-Type": media_type})
        refused(answer, "invalid_request", code="malformed_body")
    compressed = endpoint.post(b"x=1", key | {"Content-Encoding": "gzip"})
    refused(compressed, "invalid_request", code="malformed_body")
    large = endpoint.post(b"x=" + b"1" * 70_000, key)
    refused(large, "invalid_request", code="body_too_large", status=413)


def test_a_header_with_another_user_is_refused(endpoint: Endpoint) -> None:
    user = endpoint.store()
    headers = endpoint.bearer("full") | {"X-On-Behalf-Of": secret_jwt(user)}
    refused(endpoint.ask(user, headers=headers), "invalid_request", code="invalid_request")


def test_a_token_that_does_not_work_is_an_invalid_grant(endpoint: Endpoint) -> None:
    expired = endpoint.store(provider="canvas", expires_at=PAST)
    refused(endpoint.ask(expired, audience="canvas"), "invalid_grant", code="token_inactive")
    inactive = endpoint.store()
    with endpoint.service.client() as client:
        client.patch(f"/v1/users/{inactive}/tokens/acme", json={"status": "needs_reauth"})
    refused(endpoint.ask(inactive), "invalid_grant", code="token_inactive")
    withdrawn = endpoint.store(refresh_token="unknown-to-the-provider", expires_at=PAST)
    refused(endpoint.ask(withdrawn), "invalid_grant", code="token_inactive")


def test_a_provider_that_is_down_is_temporarily_unavailable(endpoint: Endpoint) -> None:
    expired = endpoint.store(refresh_token=endpoint.provider.seed(), expires_at=PAST)
    endpoint.provider.always(Answer(status=503))
    refused(endpoint.ask(expired), "temporarily_unavailable", code="provider_unavailable", status=503)


def test_other_methods_are_problems_and_read_no_body(endpoint: Endpoint) -> None:
    with endpoint.service.client() as client:
        answer = client.get(PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.headers["cache-control"] == "no-store"


def test_without_an_issuer_there_is_no_token_exchange(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, SqliteStore(tmp_path / "vault.db").environment()) as service,
        oauth_stand_in() as idle,
    ):
        endpoint = Endpoint(service, idle, tmp_path)
        answer = endpoint.ask(str(uuid4()))
        refused(answer, "unsupported_grant_type", code="invalid_request")
        assert "USER_JWT_ISSUER" in answer.json()["error_description"]


def test_the_rate_limit_of_a_service_holds(tmp_path: Path) -> None:
    settings = {
        **SqliteStore(tmp_path / "vault.db").environment(),
        "USER_JWT_ISSUER": ISSUER,
        "USER_JWT_SECRET": SECRET,
        "RATE_LIMIT_PER_SECOND": "0.1",
    }
    with running_service(tmp_path, settings) as service, oauth_stand_in() as idle:
        endpoint = Endpoint(service, idle, tmp_path)
        answers = [endpoint.ask(str(uuid4())) for _ in range(110)]
        assert {answer.status_code for answer in answers} == {400, 429}
        refused(answers[-1], "temporarily_unavailable", code="rate_limited", status=429)


def test_a_refusal_is_logged_with_its_numeric_status(endpoint: Endpoint) -> None:
    with endpoint.service.logged() as lines:
        endpoint.ask(str(uuid4()))
        endpoint.post({}, {})
    logged = [(line["route"], line["status"], line["outcome"]) for line in lines if line["event"] == "request"]
    assert logged == [(PATH, 400, "token_not_found"), (PATH, 401, "unauthenticated")]


def test_errors_and_calls_are_counted_and_timed(endpoint: Endpoint) -> None:
    with endpoint.service.client() as client:
        before = scraped(client)
        endpoint.ask(endpoint.store())
        endpoint.ask(str(uuid4()))
        after = scraped(client)
    grown = after.increase(before, "token_vault_requests_total")
    of_endpoint = {dict(labels)["status"]: by for labels, by in grown.items() if dict(labels)["route"] == PATH}
    assert of_endpoint == {"200": 1, "400": 1}
    assert after.value("token_vault_request_duration_seconds_count", route=PATH, method="POST") >= 2
