"""`GET /metrics`: its counts, its bounded labels, and no secret."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prometheus_client import generate_latest

from app.api.problems import STATUS
from app.config.settings import Settings
from app.main import create_app
from app.observability.metrics.labels import KMS_OPERATIONS, KMS_OUTCOMES, OUTCOMES, PROVIDERS
from app.observability.metrics.registry import VaultMetrics
from app.tokens.events import Operation, TokenEvent
from app.tokens.models import Caller, TokenId
from tests.support.api.service import Service, running_service
from tests.support.observability.application import running_application
from tests.support.observability.exposed import Exposed, read, scraped
from tests.support.rewrap.stored_rows import SqliteRows, local_encryption, pulseplan_rows, sealed_row
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.kms import Kms
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SqliteStore, SupabaseStore, sqlite_connection
from tests.support.waiting import eventually

TOKEN_ROUTE = "/v1/users/{user_id}/tokens/{provider}"
SECRET = "CANARY-metric-secret"
_BOUND_SECONDS = 120.0  # shows a hang


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SqliteStore:
    return SqliteStore(tmp_path_factory.mktemp("metrics") / "vault.db")


@pytest.fixture(scope="module")
def vault(store: SqliteStore) -> Iterator[Service]:
    """A service that the tests share, so a test looks at what it adds."""
    with running_service(store.path.parent, store.environment()) as running:
        yield running


def _path(user: object, provider: str = "canvas") -> str:
    return f"/v1/users/{user}/tokens/{provider}"


def _edit(store: SqliteStore, statement: str, *values: str | None) -> None:
    with closing(sqlite_connection(store.path)) as connection:
        connection.execute(statement, values)


def _until(client: httpx.Client, holds: Callable[[Exposed], bool]) -> Exposed:
    """Scrape until the condition holds; gauges lag behind."""
    seen: list[Exposed] = []

    def scrape() -> bool:
        seen.append(scraped(client))
        return holds(seen[-1])

    eventually(scrape, within_seconds=_BOUND_SECONDS)
    return seen[-1]


def test_requests_are_counted_and_timed_by_template_method_and_status(vault: Service) -> None:
    user = uuid4()
    with vault.client() as client:
        before = scraped(client)
        client.put(_path(user), json={"access_token": SECRET})
        for _ in range(3):
            client.get(_path(user))
        client.get(_path(uuid4()))
        client.get(f"/v1/{SECRET}")
        client.get(f"/{SECRET}/{uuid4()}")
        client.request("TRACE", "/v1/encryption")
        seen = scraped(client)
    count = "token_vault_requests_total"
    assert seen.increase(before, count) == {
        frozenset({("route", route), ("method", method), ("status", status)}): value
        for route, method, status, value in (
            (TOKEN_ROUTE, "PUT", "201", 1),
            (TOKEN_ROUTE, "GET", "200", 3),
            (TOKEN_ROUTE, "GET", "404", 1),
            ("unmatched", "GET", "404", 2),
            ("/v1/encryption", "other", "405", 1),
            ("/metrics", "GET", "200", 1),
        )
    }
    seconds = "token_vault_request_duration_seconds"
    gets = frozenset({("route", TOKEN_ROUTE), ("method", "GET")})
    assert seen.increase(before, f"{seconds}_count")[gets] == 4
    assert 0 < seen.increase(before, f"{seconds}_sum")[gets] < _BOUND_SECONDS
    assert seen.value("token_vault_requests_in_flight") == 1, "the scrape itself"


@pytest.mark.parametrize("path", ["/docs", "/docs/style.css", "/openapi.json"])
def test_a_page_of_the_documentation_is_counted_as_its_route(vault: Service, path: str) -> None:
    with vault.client() as client:
        before = scraped(client)
        assert client.get(path).status_code == 200
        after = scraped(client)
    counted = {dict(labels)["route"] for labels in after.increase(before, "token_vault_requests_total")}
    assert counted == {path, "/metrics"}


def test_refused_requests_are_counted_by_reason(vault: Service) -> None:
    with vault.client() as client:
        before = scraped(client)
        answer = client.put(_path(uuid4()), json={"access_token": "x" * 100_000})
        after = scraped(client)
    assert answer.json()["code"] == "body_too_large"
    name = "token_vault_refused_total"
    assert after.increase(before, name) == {frozenset({("reason", "body_too_large")}): 1}
    assert (name, frozenset({("reason", "overloaded")})) in before.series, "so an alert sees the first increase"


def test_refusals_before_a_request_are_counted_by_reason(vault: Service) -> None:
    name = "token_vault_refused_total"
    address = ("127.0.0.1", int(vault.url.rpartition(":")[2]))
    with vault.client() as client:
        before = scraped(client)
        with socket.create_connection(address, timeout=_BOUND_SECONDS) as caller:
            caller.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000)
            assert b" 431 " in caller.recv(1000)
            assert caller.recv(100) == b"", "closed"
        after = scraped(client)
    assert after.increase(before, name) == {frozenset({("reason", "head_too_large")}): 1}
    assert after.value("token_vault_connections") == 1, "the scrape's own"


def test_operations_are_counted_by_kind_provider_and_outcome(vault: Service) -> None:
    user = uuid4()
    with vault.client() as client:
        before = scraped(client)
        for provider in ("google", "my-own-provider", "another"):
            client.put(_path(user, provider), json={"access_token": SECRET})
        client.get(_path(user, "google"))
        client.get(_path(user, "notion"))
        client.get(f"/v1/users/{user}/tokens")
        seen = scraped(client)
    name = "token_vault_token_operations_total"
    assert seen.increase(before, name) == {
        frozenset({("operation", operation), ("provider", provider), ("outcome", outcome)}): value
        for operation, provider, outcome, value in (
            ("store", "google", "success", 1),
            ("store", "other", "success", 2),
            ("reveal", "google", "success", 1),
            ("reveal", "notion", "token_not_found", 1),
            ("list", "none", "success", 1),
        )
    }


def test_10_000_users_and_500_providers_leave_fewer_than_400_series(vault: Service) -> None:
    providers = [f"made-up-{number}" for number in range(500)]
    known = ["canvas", "google", "microsoft", "apple", "notion"]
    users = [str(uuid4()) for _ in range(10_000)]
    with vault.client() as client, ThreadPoolExecutor(2) as threads:  # more than two batches exceed the limit
        before = scraped(client)

        def reveal(start: int) -> int:
            asked = [
                {"user_id": user, "provider": (providers + known)[(start + index) % 505]}
                for index, user in enumerate(users[start : start + 100])
            ]
            return client.post("/v1/tokens/batch-get", json={"tokens": asked}).status_code

        assert set(threads.map(reveal, range(0, 10_000, 100))) == {200}
        body = {"access_token": SECRET}
        stored = [client.put(_path(users[0], provider), json=body).status_code for provider in providers[:495] + known]
        assert set(stored) == {201}
        assert len(client.get(f"/v1/users/{users[0]}/tokens").json()["tokens"]) == 500
        for provider in known:
            path = _path(users[0], provider)
            client.get(path)
            client.patch(path, json={"metadata": {"a": 1}})
            client.post(f"{path}/rotate", json=body)
            client.post(f"{path}/rotate", json=body, headers={"If-Match": '"1"'})
            client.post(f"{path}/rewrap")
            client.delete(path)
        for user in users[1:50]:
            client.get(f"/v1/users/{user}/tokens")
            client.get(f"/{user}")
        client.delete(f"/v1/users/{users[0]}/tokens")
        client.get("/v1/encryption")
        client.get("/readyz")
        seen = scraped(client)
    assert len(seen.series) < 400
    missed = seen.increase(before, "token_vault_token_operations_total")
    assert sum(value for labels, value in missed.items() if ("outcome", "token_not_found") in labels) == 10_000
    assert "made-up" not in seen.text
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", seen.text), "no user id"


def test_every_outcome_on_every_route_leaves_a_bounded_number_of_series() -> None:
    """Every product of labels at its largest, KMS included."""
    metrics = VaultMetrics(local_versions=[1, 2, 3])
    providers = [f"made-up-{number}" for number in range(50)] + sorted(PROVIDERS)
    for operation, provider, outcome in product(Operation, providers, [*sorted(OUTCOMES), "made-up"]):
        metrics.operations.record(
            TokenEvent(
                operation=operation,
                user_id=None,
                token_id=TokenId(str(uuid4()), provider),
                scheme=None,
                encryption_method=None,
                outcome=outcome,
                detail=None,
                caller=Caller("tests"),
            )
        )
    statuses = {200, 201, 204, 499, *STATUS.values()}
    app = create_app(Settings.model_validate({"token_encryption_key": MASTER_KEY, "service_keys": "[]"}))
    routes = [
        (getattr(route, "path", ""), method) for route in app.routes for method in getattr(route, "methods", None) or ()
    ]
    assert len(routes) > 10
    for (route, method), status in product([*routes, (None, "GET"), ("shed", "GET")], statuses):
        metrics.requests.ended(route, method, status, 0.01)
    for kms_operation, outcome in product(KMS_OPERATIONS, [*KMS_OUTCOMES, "made-up"]):
        metrics.encryption.kms_request(kms_operation, outcome, 0.01)
    assert len(read(generate_latest(metrics.registry).decode()).series) < 1500


def test_metrics_contain_no_secret_key_host_or_path(vault: Service) -> None:
    user = uuid4()
    with vault.client() as client:
        client.headers["X-Request-ID"] = "CANARY-request"
        client.headers["X-Purpose"] = "canary.purpose"
        client.put(_path(user), json={"access_token": SECRET, "base_url": "https://canary.example.edu"})
        client.get(_path(user), params={"service_type": SECRET})
        client.get(f"/v1/users/{SECRET}/tokens/{SECRET}")
        with httpx.Client(base_url=vault.url, trust_env=False, verify=PLAIN_HTTP) as stranger:
            stranger.get(_path(user), headers={"Authorization": f"Bearer {SECRET}"})
        seen = scraped(client)
    hidden = ("canary", str(user), MASTER_KEY.lower(), "127.0.0.1", "localhost", "vault.db", *vault.keys.values())
    assert [one for one in hidden if one.lower() in seen.text.lower()] == []


def test_every_metric_has_our_prefix_and_a_help_text(vault: Service) -> None:
    with vault.client() as client:
        text = scraped(client).text
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert helps.keys() == kinds.keys()
    assert [name for name in helps if not name.startswith(("token_vault_", "process_"))] == []
    assert [name for name, kind in kinds.items() if (kind == "counter") is not name.endswith("_total")] == []
    assert [name for name, kind in kinds.items() if kind == "histogram" and not name.endswith("_seconds")] == []


def test_store_errors_are_counted_while_metrics_still_answer(
    supabase: SupabaseStack, supabase_service: tuple[Service, SupabaseStore]
) -> None:
    service = supabase_service[0]
    with service.client() as client:
        before = scraped(client)
        supabase.faults.down()
        assert client.get(_path(uuid4())).status_code == 503
        failing = scraped(client)
        _until(client, lambda seen: seen.value("token_vault_ready") == 0)
        supabase.faults.clear()
        recovered = _until(client, lambda seen: seen.value("token_vault_ready") == 1)
    failed = {"operation": "get_many", "code": "store_unavailable"}
    errors = [one.value("token_vault_store_errors_total", **failed) for one in (before, failing)]
    if errors[0] == errors[1]:  # a lone lookup
        failed["operation"] = "get"
        errors = [one.value("token_vault_store_errors_total", **failed) for one in (before, failing)]
    assert errors[1] == errors[0] + 1
    assert recovered.value("token_vault_check_state", check="store") == 1


def test_decryption_failures_are_counted_by_reason(vault: Service, store: SqliteStore) -> None:
    user, other = str(uuid4()), str(uuid4())
    with vault.client() as client:
        for one in (user, other):
            client.put(_path(one), json={"access_token": SECRET})
        rows = {row["user_id"]: row for row in store.rows()}
        _edit(store, "update oauth_tokens set access_token = ? where user_id = ?", rows[other]["access_token"], user)
        _edit(store, "update oauth_tokens set access_token = 'nothing' where user_id = ?", other)
        before = scraped(client)
        codes = [client.get(_path(one)).json()["code"] for one in (user, other)]
        after = scraped(client)
    assert codes == ["integrity", "malformed_ciphertext"]
    for reason in codes:
        assert after.increase(before, "token_vault_decryption_failures_total")[frozenset({("reason", reason)})] == 1
        assert ("token_vault_decryption_failures_total", frozenset({("reason", reason)})) in before.series


def test_kms_requests_cache_throttles_breaker_and_fallback_are_counted(kms: Kms, tmp_path: Path) -> None:
    settings = kms.environment() | {"USE_KMS": "true", "KMS_FALLBACK_TO_LOCAL": "true"}
    users = [uuid4() for _ in range(8)]
    with running_service(tmp_path, settings) as vault, vault.client() as client:
        client.put(_path(users[0]), json={"access_token": SECRET})
        for _ in range(5):
            client.get(_path(users[0]))
        calm = scraped(client)
        kms.faults.error("ThrottlingException")
        for user in users[1:]:
            assert client.put(_path(user), json={"access_token": SECRET}).status_code == 201
        stormy = scraped(client)
    made = {"operation": "GenerateDataKey", "outcome": "success"}
    assert calm.value("token_vault_kms_requests_total", **made) >= 2, "the self-test's and the user's"
    assert calm.value("token_vault_kms_request_duration_seconds_count", operation="GenerateDataKey") >= 2
    assert calm.value("token_vault_data_key_lookups_total", purpose="open", result="hit") >= 5
    assert calm.value("token_vault_data_keys") >= 2
    assert calm.value("token_vault_kms_breaker_state") == calm.value("token_vault_fallback_writes_total") == 0
    throttled = stormy.value("token_vault_kms_throttles_total")
    assert throttled >= 5
    outcome = {"operation": "GenerateDataKey", "outcome": "ThrottlingException"}
    assert stormy.value("token_vault_kms_requests_total", **outcome) == throttled
    assert stormy.value("token_vault_kms_breaker_state") == 2
    assert stormy.value("token_vault_kms_breaker_changes_total", state="open") == 1
    assert stormy.value("token_vault_fallback_writes_total") == 7
    assert "arn:" not in stormy.text


def test_a_census_counts_rows_by_scheme_and_a_sweep_rewraps_them(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    old = {"TOKEN_ENCRYPTION_KEY": MASTER_KEY, **store.environment()}
    with running_service(tmp_path, old) as vault, vault.client() as client:
        for _ in range(4):
            client.put(_path(uuid4()), json={"access_token": SECRET})
    strange = ["kms:arn:aws:kms:eu-central-1:111122223333:key/CANARY", "local:v777", "CANARY", None]
    rows = store.rows()
    for row, scheme in zip(rows, strange, strict=True):
        _edit(store, "update oauth_tokens set encryption_scheme = ? where id = ?", scheme, row["id"])
    new = {
        "TOKEN_ENCRYPTION_KEY": "bmV3LW1hc3Rlci1rZXktMzItYnl0ZXMtbG9uZy4uLi4=",
        "ENCRYPTION_KEY_VERSION": "2",
        "TOKEN_ENCRYPTION_PREVIOUS_KEYS": f'{{"1": "{MASTER_KEY}"}}',
        "METRICS_CENSUS_SECONDS": "0.5",
        **store.environment(),
    }
    with running_service(tmp_path, new) as vault, vault.client() as client:
        counted = _until(client, lambda seen: seen.value("token_vault_rows_due") == 4)
        shown = {dict(labels)["scheme"]: value for labels, value in counted.labelled("token_vault_rows").items()}
        assert shown == {"local:v1": 0, "local:v2": 0, "kms": 1, "none": 1, "other": 2}
        assert abs(counted.value("token_vault_census_timestamp_seconds") - time.time()) < 60
        assert "CANARY" not in counted.text
    for row in rows:  # no sweep takes a row that claims another scheme than its ciphertext's
        _edit(store, "update oauth_tokens set encryption_scheme = 'local:v1' where id = ?", row["id"])
    with running_service(tmp_path, new | {"REWRAP_INTERVAL_SECONDS": "0.3"}) as vault, vault.client() as client:
        rewrapped = _until(
            client,
            lambda seen: seen.value("token_vault_rows", scheme="local:v2") == 4,
        )
    assert rewrapped.value("token_vault_sweep_rows_total", outcome="moved") == 4
    assert rewrapped.value("token_vault_rows_due") == rewrapped.value("token_vault_rows", scheme="kms") == 0


def test_rows_in_pulseplans_formats_and_the_open_window_are_shown(tmp_path: Path) -> None:
    store = SqliteStore(SqliteRows(tmp_path / "vault.db").path)
    old = [row for row, _ in pulseplan_rows()]
    for row in [*old, sealed_row(local_encryption(1))]:
        store.insert_raw(**row)
    settings = {"METRICS_CENSUS_SECONDS": "0.5", "REWRAP_INTERVAL_SECONDS": "0.1", **store.environment()}
    for allowed in ("true", "false"):
        with running_service(tmp_path, settings | {"ALLOW_LEGACY_FORMATS": allowed}) as vault, vault.client() as client:
            counted = _until(client, lambda seen: seen.value("token_vault_census_timestamp_seconds") > 0)
            assert counted.value("token_vault_rows_legacy") == len(old)
            assert counted.value("token_vault_legacy_formats_allowed") == (allowed == "true")


def test_service_keys_and_build_are_shown(vault: Service) -> None:
    with vault.client() as client:
        seen = scraped(client)
    assert seen.value("token_vault_service_keys_alive") == len(vault.keys) - 1, "one has expired"
    assert list(seen.labelled("token_vault_build_info").values()) == [1]


async def test_metrics_can_be_switched_off(tmp_path: Path) -> None:
    async with running_application(tmp_path, METRICS="false") as client:
        assert (await client.get("/metrics")).json()["code"] == "route_not_found"
        assert (await client.put(_path(uuid4()), json={"access_token": SECRET})).status_code == 201


def test_a_duplicate_series_fails_the_parser() -> None:
    with pytest.raises(AssertionError, match="twice"):
        read("# TYPE a gauge\na 1\na 2\n")


def test_audit_failures_have_a_fixed_set_of_reasons() -> None:
    metrics = VaultMetrics()
    before = read(generate_latest(metrics.registry).decode())
    for reason in ("ENOSPC", "slow", "ECANARY", "ECANARY2"):
        metrics.audit.audit_failure(reason)
    metrics.audit.audit_events(3)
    after = read(generate_latest(metrics.registry).decode())
    name = "token_vault_audit_failures_total"
    assert before.labelled(name).keys() == after.labelled(name).keys()
    assert {reason: after.value(name, reason=reason) for reason in ("ENOSPC", "slow", "other", "full")} == {
        "ENOSPC": 1,
        "slow": 1,
        "other": 2,
        "full": 0,
    }
    assert after.value("token_vault_audit_events_total") == 3
