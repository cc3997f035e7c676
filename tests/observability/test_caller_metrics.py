"""How many users each service reveals, and what it is denied."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry

from app.observability.metrics.callers import WINDOW_SECONDS, CallerMetrics, DistinctCount
from app.tokens.events import Operation, TokenEvent
from app.tokens.models import Caller, TokenId
from tests.support.api.service import Service, running_service
from tests.support.observability.exposed import scraped
from tests.support.security.clock import Clock

SECRET = "canary-access"
USERS = 30


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("vault"), {}) as service:
        yield service


def _reveal(service: str, user: str, outcome: str = "success") -> TokenEvent:
    return TokenEvent(
        operation=Operation.REVEAL,
        user_id=user,
        token_id=TokenId.parse(user, "google", "calendar"),
        scheme=None,
        encryption_method=None,
        outcome=outcome,
        detail=None,
        caller=Caller(service, "request", address=None),
    )


@pytest.mark.parametrize("number", [0, 1, 100, 3_000, 100_000])
def test_an_estimate_is_close_to_the_number_of_distinct_texts(number: int) -> None:
    count = DistinctCount()
    for text in range(number):
        count.add(str(text))
        count.add(str(text // 2))
    assert count.estimate() == pytest.approx(number, rel=0.25), "eight standard errors"


def test_users_are_counted_by_service_in_this_hour_and_the_last() -> None:
    registry, clock = CollectorRegistry(), Clock()
    callers = CallerMetrics(registry, clock=clock)

    def shown(service: str) -> float | None:
        callers.publish()
        return registry.get_sample_value("token_vault_users_revealed", {"service": service})

    first = str(uuid4())
    for _ in range(3):
        callers.record(_reveal("api", first))
    callers.record(_reveal("api", str(uuid4()), outcome="forbidden"))
    for _ in range(5):
        callers.record(_reveal("jobs", str(uuid4())))
    assert (shown("api"), shown("jobs")) == (1, 5)
    clock.advance(WINDOW_SECONDS)
    callers.record(_reveal("api", str(uuid4())))
    callers.record(_reveal("api", str(uuid4())))
    assert (shown("api"), shown("jobs")) == (2, 5)
    clock.advance(WINDOW_SECONDS)
    assert (shown("api"), shown("jobs")) == (2, 0)
    clock.advance(5 * WINDOW_SECONDS)
    assert (shown("api"), shown("jobs")) == (0, 0)


def test_services_beyond_the_sixty_fourth_share_one_label() -> None:
    registry = CollectorRegistry()
    callers = CallerMetrics(registry)
    for number in range(80):
        callers.record(_reveal(f"service-{number}", str(uuid4())))
        callers.refused(_reveal(f"service-{number}", str(uuid4()), outcome="forbidden"))
    callers.publish()
    assert registry.get_sample_value("token_vault_users_revealed", {"service": "other"}) == pytest.approx(16, abs=4)
    assert registry.get_sample_value("token_vault_denials_total", {"service": "other", "code": "forbidden"}) == 16
    names = {sample.labels["service"] for metric in registry.collect() for sample in metric.samples}
    assert len(names) == 64 + len({"none", "other"})


def test_a_scrape_shows_users_and_denials_of_each_service(vault: Service) -> None:
    users = [str(uuid4()) for _ in range(USERS)]
    items = [{"user_id": user, "provider": "google"} for user in users[:3]]
    with vault.client() as client, vault.client("canvas") as limited, vault.client("expired") as expired:
        before = scraped(client)
        idle = frozenset({("service", "canvas"), ("code", "forbidden")})
        assert before.labelled("token_vault_denials_total")[idle] == 0, "a burst is an increase"
        for user in users:
            assert client.put(f"/v1/users/{user}/tokens/google", json={"access_token": SECRET}).status_code == 201
            assert client.get(f"/v1/users/{user}/tokens/google").status_code == 200
            assert client.get(f"/v1/users/{user}/tokens/google").status_code == 200
        assert limited.get(f"/v1/users/{users[0]}/tokens/google").status_code == 403
        assert limited.post("/v1/tokens/batch-get", json={"tokens": items}).status_code == 200
        assert expired.get(f"/v1/users/{users[0]}/tokens/google").status_code == 401
        seen = scraped(client)
    assert seen.value("token_vault_users_revealed", service="full") == pytest.approx(USERS, abs=4)
    assert seen.increase(before, "token_vault_denials_total") == {
        frozenset({("service", "canvas"), ("code", "forbidden")}): 1 + len(items),
        frozenset({("service", "none"), ("code", "unauthenticated")}): 1,
    }
