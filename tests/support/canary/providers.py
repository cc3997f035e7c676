"""Refreshes, exchanges, revocations and token exchanges, at a provider whose answers quote secrets."""

from __future__ import annotations

import base64
import json
from typing import Any, Final
from urllib.parse import quote_plus
from uuid import uuid4

from tests.support.canary.secrets import Marked
from tests.support.canary.traffic import Traffic
from tests.support.oauth.stand_in import CLIENT_ID, Answer, OAuthStandIn

_PAST: Final = "2026-01-01T00:00:00Z"
_TOKEN: Final = "/oauth/token"
_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"


def prepare_provider(provider: OAuthStandIn, marked: Marked) -> dict[str, str]:
    """Let the provider know the client's secret and mark its tokens; return the settings of a vault that asks it."""
    provider.clients[CLIENT_ID] = {marked.client_secret}
    provider.marks |= {"at": marked.issued_access, "rt": marked.issued_refresh, "code": marked.code}
    # the current secret is refused, so both are sent
    secrets = {"client_secret": marked.wrong_client_secret, "previous_client_secret": marked.client_secret}
    return {"OAUTH_PROVIDERS": json.dumps({"acme": provider.entry(**secrets)})}


def every_provider_call(traffic: Traffic, provider: OAuthStandIn) -> None:
    """Send every kind of request that makes the vault ask the provider, and let it fail in every way."""
    acme = _due(traffic, provider)
    token = traffic.send_until(200, "GET", acme).json()
    assert traffic.marked.issued_access in token["access_token"]
    traffic.send_until(200, "POST", f"{acme}/refresh", json={"rejected_version": token["version"]})
    batch = [{"user_id": _due(traffic, provider).split("/")[3], "provider": "acme"} for _ in range(2)]
    traffic.send("POST", "/v1/tokens/batch-get", json={"tokens": batch})
    _exchanges(traffic, provider)
    _token_exchanges(traffic, provider)
    _revocations(traffic, provider)
    for answer in _failures(traffic.marked):
        failing = _due(traffic, provider)
        code = _code(traffic, provider.seed_code())
        provider.script(answer)
        assert traffic.send("GET", failing).is_error
        provider.script(answer)
        assert traffic.send("POST", f"{failing}/exchange", json=code).is_error
        provider.always(answer)
        traffic.send("DELETE", failing, params={"revoke": "required"})
        traffic.send("DELETE", failing, params={"revoke": "true"})
        provider.always(None)
    traffic.send("GET", "/metrics")


def _due(traffic: Traffic, provider: OAuthStandIn) -> str:
    """Store a token that has expired; return its path."""
    acme = f"/v1/users/{uuid4()}/tokens/acme"
    body = {"access_token": traffic.marked.access, "refresh_token": provider.seed(), "expires_at": _PAST}
    traffic.send_until(201, "PUT", acme, json=body)
    return acme


def _code(traffic: Traffic, code: str) -> dict[str, Any]:
    return {"code": code, "redirect_uri": "https://api.example/cb", "code_verifier": traffic.marked.code_verifier}


def _exchanges(traffic: Traffic, provider: OAuthStandIn) -> None:
    acme = f"/v1/users/{uuid4()}/tokens/acme"
    body = _code(traffic, provider.seed_code())
    traffic.send_until(201, "POST", f"{acme}/exchange", json=body)
    assert traffic.send("POST", f"{acme}/exchange", json=body).status_code == 409, "it was redeemed"
    for wrong in ({**body, "code": [body["code"]]}, {**body, body["code"]: 1}, {**body, "redirect_uri": 1}):
        assert traffic.send("POST", f"{acme}/exchange", json=wrong).status_code == 422
    assert traffic.send("POST", f"/v1/users/{uuid4()}/tokens/canvas/exchange", json=body).status_code == 422


def _token_exchanges(traffic: Traffic, provider: OAuthStandIn) -> None:
    marked, keys = traffic.marked, traffic.service.keys
    acme = f"/v1/users/{marked.jwt_user}/tokens/acme"
    traffic.send_until(
        201, "PUT", acme, json={"access_token": marked.access, "refresh_token": provider.seed(), "expires_at": _PAST}
    )
    asked = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": marked.user_jwt,
        "subject_token_type": _ACCESS_TOKEN,
        "audience": "acme",
    }
    pair = f"full:{quote_plus(keys['full'])}".encode()
    basic = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    bearer = {"Authorization": f"Bearer {keys['on_behalf_of']}"}
    for headers in (basic, bearer):
        assert marked.issued_access in traffic.send_until(200, "POST", _TOKEN, data=asked, headers=headers).text
    secret = marked.misplaced
    for name in (*asked, "scope", "resource", "actor_token", "client_secret", "requested_token_type"):
        assert traffic.send("POST", _TOKEN, data={**asked, name: secret}, headers=basic).status_code == 400
    traffic.send("POST", _TOKEN, data={**asked, "client_id": secret, secret: secret, "scope": secret}, headers=basic)
    plain = secret.encode("ascii", "ignore").decode()
    wrong_pair = base64.b64encode(f"{secret}:{secret}".encode()).decode()
    for authorization in (f"Basic {wrong_pair}", f"Basic {plain}", f"Bearer {marked.user_jwt}"):
        answer = traffic.send("POST", _TOKEN, data=asked, headers={"Authorization": authorization})
        assert answer.status_code == 401
    for content in (secret.encode(), json.dumps(asked).encode(), f"a={secret}&a={secret}".encode("ascii", "ignore")):
        form = {**basic, "Content-Type": "application/x-www-form-urlencoded"}
        assert traffic.send("POST", _TOKEN, content=content, headers=form).status_code == 400
    traffic.send("POST", _TOKEN, data=asked, headers={**basic, "X-On-Behalf-Of": marked.user_jwt})
    traffic.send("GET", _TOKEN, params=asked, headers=basic)


def _revocations(traffic: Traffic, provider: OAuthStandIn) -> None:
    first, second = _due(traffic, provider), _due(traffic, provider)
    traffic.send_until(200, "DELETE", first, params={"revoke": "required"})
    traffic.send_until(200, "DELETE", second.rpartition("/")[0], params={"revoke": "true"})


def _failures(marked: Marked) -> list[Answer]:
    quoting = {"error_description": f"{marked.issued_refresh} {marked.client_secret}", "hint": marked.code_verifier}
    as_html = {"Content-Type": "text/html"}
    secret = f"{marked.issued_access} {marked.issued_refresh} {marked.code} {marked.client_secret}"
    return [
        Answer(status=400, body={"error": "invalid_grant", **quoting}),
        Answer(status=400, body={"error": marked.issued_refresh, **quoting}),
        Answer(status=503, body=secret, headers=as_html),
        Answer(body=f"<html>{secret}</html>", headers=as_html),
        Answer(body=f'{{"access_token": "{marked.issued_access}'),
        Answer(body={"access_token": [secret], "refresh_token": {secret: secret}}),
        Answer(status=302, headers={"Location": f"https://x.example/?token={marked.issued_refresh}"}),
        Answer(commits=True, cut="answer"),
        Answer(commits=True, cut="body"),
        # last, because they pause the provider
        Answer(status=400, body={"error": "unauthorized_client", **quoting}),
    ]
