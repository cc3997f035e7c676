"""Failures of the endpoint at which the issuer publishes the keys that verify users' JWTs."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import httpx

from tests.support.api.fixtures import problem
from tests.support.api.service import running_service
from tests.support.failures.load import path_of
from tests.support.failures.scenario import recovery_bound_seconds
from tests.support.failures.table import BY_NAME, Failure
from tests.support.security.user_jwts import new_signing_key
from tests.support.stack.jwks import jwks_endpoint
from tests.support.waiting import eventually

KEY = new_signing_key()


def _for(client: httpx.Client, user_id: str, jwt: str) -> httpx.Response:
    return client.get(path_of(user_id), headers={"X-On-Behalf-Of": jwt})


def _require_documented(answer: httpx.Response, failure: Failure) -> None:
    assert failure.status is not None
    assert failure.code is not None
    problem(answer, failure.status, failure.code)


def _shows(client: httpx.Client, failure: Failure, state: str) -> bool:
    """Whether the line's check of `/readyz` has this state."""
    assert failure.check is not None
    answer = client.get("/readyz")
    assert answer.status_code == 200, "leaving the balancer would not help"
    return bool(answer.json()["checks"][failure.check] == state)


def _shows_the_outage(client: httpx.Client, failure: Failure) -> bool:
    return _shows(client, failure, "degraded" if failure.degraded else "down")


def test_key_set_unreachable_since_the_start(tmp_path: Path) -> None:
    failure = BY_NAME["Issuer's key set unreachable since the start"]
    user = str(uuid4())
    with jwks_endpoint(KEY) as endpoint:
        endpoint.stop()
        with (
            running_service(tmp_path, endpoint.environment()) as service,
            service.client("on_behalf_of") as client,
            service.client() as background,
        ):
            assert background.put(path_of(user), json={"access_token": "x"}).status_code == 201
            _require_documented(_for(client, user, KEY.jwt(user)), failure)
            problem(client.get(path_of(user)), 403, "forbidden")  # without a JWT there is nothing to verify
            assert background.get(path_of(user)).status_code == 200
            eventually(lambda: _shows_the_outage(background, failure))
            endpoint.start()
            eventually(
                lambda: _for(client, user, KEY.jwt(user)).status_code == 200,
                within_seconds=recovery_bound_seconds(failure),
            )
            eventually(lambda: _shows(background, failure, "up"))


def test_key_set_unreachable_later(tmp_path: Path) -> None:
    failure = BY_NAME["Issuer's key set unreachable later"]
    user, successor = str(uuid4()), new_signing_key()
    with (
        jwks_endpoint(KEY) as endpoint,
        running_service(tmp_path, endpoint.environment()) as service,
        service.client("on_behalf_of") as client,
    ):
        put = client.put(path_of(user), json={"access_token": "x"}, headers={"X-On-Behalf-Of": KEY.jwt(user)})
        assert put.status_code == 201
        endpoint.stop()

        def finds_the_outage() -> bool:  # the first call at least ten seconds after the last download
            _require_documented(_for(client, user, successor.jwt(user)), failure)
            return _shows_the_outage(client, failure)

        eventually(finds_the_outage, within_seconds=120)
        assert _for(client, user, KEY.jwt(user)).status_code == 200
        endpoint.publish(KEY, successor)
        endpoint.start()
        eventually(
            lambda: _for(client, user, successor.jwt(user)).status_code == 200,
            within_seconds=recovery_bound_seconds(failure),
        )
        eventually(lambda: _shows(client, failure, "up"))
