from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from app.errors import GrantRejected, ProviderMisconfigured, ProviderUnavailable, RevocationUnsupported, VaultError
from app.refresh.provider_client import ProviderTokens
from app.refresh.providers import Revocation
from tests.support.oauth.providers import provider_client, provider_of
from tests.support.oauth.stand_in import CLIENT_ID, CLIENT_SECRET, Answer, OAuthStandIn, oauth_stand_in
from tests.support.stack.loopback import free_port

CANARY = "canary-77f0d1c2"


@pytest.fixture(scope="module")
def shared_stand_in() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as running:
        yield running


@pytest.fixture
def stand_in(shared_stand_in: OAuthStandIn) -> OAuthStandIn:
    shared_stand_in.requests.clear()
    return shared_stand_in


async def _refresh(stand_in: OAuthStandIn, token: str | None = None, **changes: Any) -> ProviderTokens:
    async with provider_client(total_seconds=5) as client:
        return await client.refresh(
            provider_of(stand_in.entry(**changes)),
            refresh_token=SecretStr(token or stand_in.seed()),
            base_url=None,
            scopes=("one", "two"),
        )


async def _failure(stand_in: OAuthStandIn, answer: Answer, **changes: Any) -> VaultError:
    stand_in.script(answer)
    with pytest.raises(VaultError) as caught:
        await _refresh(stand_in, **changes)
    return caught.value


async def test_a_refresh_returns_the_new_pair(stand_in: OAuthStandIn) -> None:
    spent = stand_in.seed()
    tokens = await _refresh(stand_in, spent)
    assert tokens.refresh_token is not None
    assert stand_in.accepts(tokens.refresh_token.get_secret_value())
    assert not stand_in.accepts(spent)
    assert tokens.expires_in_seconds == 3600
    assert len(stand_in.requests) == 1


async def test_an_exchange_redeems_a_code_with_its_verifier(stand_in: OAuthStandIn) -> None:
    provider = provider_of(stand_in.entry())
    code = SecretStr(stand_in.seed_code())
    async with provider_client() as client:
        tokens = await client.exchange(
            provider, code=code, redirect_uri="https://app.test/back", code_verifier=SecretStr("v"), base_url=None
        )
        with pytest.raises(GrantRejected) as caught:
            await client.exchange(
                provider, code=code, redirect_uri="https://app.test/back", code_verifier=None, base_url=None
            )
    assert tokens.refresh_token is not None
    assert caught.value.reason == "invalid_grant"
    assert stand_in.requests[0].parameters["code_verifier"] == "v"
    assert stand_in.requests[0].parameters["redirect_uri"] == "https://app.test/back"


# --- the table of answers: class, whether it was sent, whether the refresh token may be spent

HTML = Answer(body=f"<html>{CANARY}</html>", headers={"Content-Type": "text/html"})
UNAVAILABLE = {
    "throttled": (Answer(status=429, body={"error": CANARY}), False),
    "internal error": (Answer(status=500, body=CANARY), True),
    "bad gateway": (Answer(status=502, body=f"<html>{CANARY}"), True),
    "its own error with an error code": (Answer(status=500, body={"error": "invalid_grant"}), True),
    "HTML with 200": (HTML, True),
    "JSON cut short": (Answer(body='{"access_token": "abc'), True),
    "a list": (Answer(body=[1]), True),
    "nothing": (Answer(body=""), True),
    "nested too deep": (Answer(body="[" * 60_000), True),
    "no access token": (Answer(body={"token_type": "Bearer"}), True),
    "an access token that is no text": (Answer(body={"access_token": 7}), True),
    "a token over the bound": (Answer(body={"access_token": "a" * 20_000, "refresh_token": "r"}), True),
    "a refresh token over the bound": (Answer(body={"access_token": "a", "refresh_token": "r" * 20_000}), True),
    "a token with a lone surrogate": (Answer(body='{"access_token": "\\ud800"}'), True),
    "a body over 64 KiB": (Answer(body={"access_token": "a", "more": "x" * 70_000}), True),
    "redirect": (Answer(status=307, headers={"Location": "/elsewhere"}), True),
    "cut before the request": (Answer(cut="request"), True),
    "cut instead of an answer": (Answer(cut="answer", commits=True), True),
    "cut in the body": (Answer(cut="body", commits=True), True),
    "temporarily unavailable": (Answer(status=400, body={"error": "temporarily_unavailable"}), False),
    "server error as 400": (Answer(status=400, body={"error": "server_error"}), True),
    "400 without a code": (Answer(status=400, body="<html>no</html>"), True),
    "403 of a firewall": (Answer(status=403, body="<html>no</html>"), True),
}
MISCONFIGURED = {
    "unauthorized_client": Answer(status=400, body={"error": "unauthorized_client"}),
    "invalid_scope": Answer(status=400, body={"error": "invalid_scope"}),
    "invalid_client": Answer(status=401, body={"error": "invalid_client", "error_description": CANARY}),
    "invalid_client as 400": Answer(status=400, body={"error": "invalid_client"}),
    "401 without a code": Answer(status=401, body=CANARY),
    "an unknown code": Answer(status=400, body={"error": CANARY}),
    "404": Answer(status=404, body="<html>not here</html>"),
}
REJECTED = {
    "invalid_grant": Answer(status=400, body={"error": "invalid_grant", "error_description": CANARY}),
    "invalid_grant as 200": Answer(status=200, body={"error": "invalid_grant"}),
    "invalid_grant as 401": Answer(status=401, body={"error": "invalid_grant"}),
    "an error of the entry": Answer(status=400, body={"error": "interaction_required"}),
}


@pytest.mark.parametrize("case", UNAVAILABLE)
async def test_an_unusable_answer_is_unavailable(stand_in: OAuthStandIn, case: str) -> None:
    answer, may_be_spent = UNAVAILABLE[case]
    error = await _failure(stand_in, answer)
    assert type(error) is ProviderUnavailable
    assert error.sent
    assert error.may_be_spent is may_be_spent
    assert CANARY not in str(error)


@pytest.mark.parametrize("case", MISCONFIGURED)
async def test_a_refused_client_is_misconfigured(stand_in: OAuthStandIn, case: str) -> None:
    error = await _failure(stand_in, MISCONFIGURED[case])
    assert type(error) is ProviderMisconfigured
    assert CANARY not in str(error)


@pytest.mark.parametrize("case", REJECTED)
async def test_a_refused_grant_names_its_reason(stand_in: OAuthStandIn, case: str) -> None:
    error = await _failure(stand_in, REJECTED[case], reauth_errors=["interaction_required"])
    assert isinstance(error, GrantRejected)
    assert error.reason == REJECTED[case].body["error"]
    assert CANARY not in str(error)


async def test_an_error_is_never_told_by_its_description(stand_in: OAuthStandIn) -> None:
    body = {"error": "invalid_client", "error_description": "invalid_grant AADSTS700082 interaction_required"}
    assert type(await _failure(stand_in, Answer(status=400, body=body))) is ProviderMisconfigured


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        *[(3600, 3600), ("3600", 3600), (3599.7, 3599), ("3599.7", 3599), (None, None), (0, None), ("0", None)],
        *[(-5, None), ("soon", None), (True, None), ([1], None), (10**30, None), (1e300, None), ("nan", None)],
    ],
)
async def test_a_strange_lifetime_loses_no_token(stand_in: OAuthStandIn, given: Any, seconds: int | None) -> None:
    stand_in.script(Answer(commits=True, changes={"expires_in": given}))
    tokens = await _refresh(stand_in)
    assert tokens.expires_in_seconds == seconds
    assert tokens.refresh_token is not None


async def test_a_number_that_is_no_json_loses_no_token(stand_in: OAuthStandIn) -> None:
    stand_in.script(Answer(body='{"access_token": "a", "expires_in": NaN, "x": ' + "9" * 5000 + "}"))
    assert await _refresh(stand_in) == ProviderTokens(access_token=SecretStr("a"))


@pytest.mark.parametrize(
    ("given", "scopes"),
    [("a b", ("a", "b")), (["a", "b"], ("a", "b")), ("", None), (None, None), (7, None), (["a", 7], None)],
)
async def test_scopes_come_as_text_or_list(stand_in: OAuthStandIn, given: Any, scopes: tuple[str, ...] | None) -> None:
    stand_in.script(Answer(body={"access_token": "a", "scope": given}))
    assert (await _refresh(stand_in)).scopes == scopes


@pytest.mark.parametrize("given", [{}, {"refresh_token": None}, {"refresh_token": ""}])
async def test_an_omitted_refresh_token_is_none(stand_in: OAuthStandIn, given: dict[str, Any]) -> None:
    stand_in.script(Answer(body={"access_token": "a"} | given))
    assert (await _refresh(stand_in)).refresh_token is None


@pytest.mark.parametrize("member", ["refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in"])
async def test_the_lifetime_of_the_refresh_token_is_read(stand_in: OAuthStandIn, member: str) -> None:
    stand_in.script(Answer(body={"access_token": "a", member: "86400"}))
    assert (await _refresh(stand_in)).refresh_token_expires_in_seconds == 86_400


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_read_in_seconds_and_as_date(stand_in: OAuthStandIn, status: int) -> None:
    pauses = []
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=500), usegmt=True)
    for text in ("17", soon, "0", "99999999", "later", "-3", "9" * 400):
        error = await _failure(stand_in, Answer(status=status, headers={"Retry-After": text}))
        assert isinstance(error, ProviderUnavailable)
        pauses.append(error.provider_pause_seconds)
    assert pauses[1] is not None
    assert 400 < pauses[1] <= 500
    assert [pauses[0], *pauses[2:]] == [17, 1, 3600, None, None, 3600]


# --- sent and not sent


async def test_a_refused_connection_is_not_sent(stand_in: OAuthStandIn) -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        await _refresh(stand_in, token_url=f"http://127.0.0.1:{free_port()}/token")
    assert not caught.value.sent


async def test_a_failed_handshake_is_not_sent(stand_in: OAuthStandIn) -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        await _refresh(stand_in, token_url=stand_in.token_url.replace("http://", "https://"))
    assert not caught.value.sent
    assert stand_in.requests == []


async def test_a_handshake_that_hangs_is_not_sent(stand_in: OAuthStandIn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the kernel accepts, and nobody answers
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/token"
        async with provider_client(connect_seconds=0.2) as client:
            with pytest.raises(ProviderUnavailable) as caught:
                await client.refresh(
                    provider_of(stand_in.entry(token_url=url)), refresh_token=SecretStr("r"), base_url=None, scopes=()
                )
    assert not caught.value.sent


async def test_an_answer_that_never_comes_was_sent(stand_in: OAuthStandIn) -> None:
    held = threading.Event()
    stand_in.script(Answer(commits=True, hold=held))
    async with provider_client(total_seconds=0.5) as client:
        with pytest.raises(ProviderUnavailable) as caught:
            await client.refresh(
                provider_of(stand_in.entry()), refresh_token=SecretStr(stand_in.seed()), base_url=None, scopes=()
            )
    held.set()
    assert caught.value.sent
    assert caught.value.may_be_spent


async def test_each_request_is_sent_once(stand_in: OAuthStandIn) -> None:
    for answer in (Answer(cut="answer"), Answer(status=503), Answer(cut="body"), Answer(status=307)):
        stand_in.requests.clear()
        await _failure(stand_in, answer)
        assert len(stand_in.requests) == 1


# --- client authentication


async def test_basic_authentication_holds_id_and_secret(stand_in: OAuthStandIn) -> None:
    await _refresh(stand_in)
    scheme, _, credentials = stand_in.requests[-1].headers["authorization"].partition(" ")
    assert (scheme, base64.b64decode(credentials).decode()) == ("Basic", f"{CLIENT_ID}:{CLIENT_SECRET}")


async def test_a_secret_with_special_characters_authenticates(stand_in: OAuthStandIn) -> None:
    stand_in.clients["special"] = {"p%:+/= &ü"}
    for client_auth in ("basic", "post"):
        tokens = await _refresh(stand_in, client_id="special", client_secret="p%:+/= &ü", client_auth=client_auth)
        assert tokens.expires_in_seconds


async def test_json_bodies_and_scopes_are_sent_as_the_entry_says(stand_in: OAuthStandIn) -> None:
    await _refresh(stand_in, body="json", client_auth="post", send_scope=True)
    [request] = stand_in.requests
    assert request.headers["content-type"] == "application/json"
    assert request.parameters["scope"] == "one two"
    assert request.client == (CLIENT_ID, CLIENT_SECRET)
    assert "cookie" not in request.headers


async def test_the_previous_secret_is_tried_if_the_new_one_is_refused(stand_in: OAuthStandIn) -> None:
    tokens = await _refresh(stand_in, client_secret="not yet active", previous_client_secret=CLIENT_SECRET)
    assert tokens.access_token
    assert [request.client[1] for request in stand_in.requests] == ["not yet active", CLIENT_SECRET]


async def test_no_other_secret_is_tried_after_the_grant_was_looked_at(stand_in: OAuthStandIn) -> None:
    for answer in (Answer(status=400, body={"error": "invalid_grant"}), Answer(status=500), Answer(cut="answer")):
        stand_in.requests.clear()
        await _failure(stand_in, answer, previous_client_secret="another")
        assert len(stand_in.requests) == 1


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


async def test_apples_secret_is_a_jwt_that_verifies(stand_in: OAuthStandIn) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stand_in.script(Answer(body={"access_token": "a"}))
    await _refresh(
        stand_in, client_auth="apple", client_id="com.app", client_secret=_pem(key), team_id="T", signing_key_id="K"
    )
    name, secret = stand_in.requests[-1].client
    assert name == "com.app"
    claims = jwt.decode(secret or "", key.public_key(), algorithms=["ES256"], audience="https://appleid.apple.com")
    assert (claims["iss"], claims["sub"]) == ("T", "com.app")
    assert 0 < claims["exp"] - claims["iat"] <= 300
    assert jwt.get_unverified_header(secret or "")["kid"] == "K"


@pytest.mark.parametrize("kind", ["rsa", "ec"])
async def test_a_client_assertion_verifies_and_is_never_the_same(stand_in: OAuthStandIn, kind: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    stand_in.script(Answer(body={"access_token": "a"}), Answer(body={"access_token": "a"}))
    for _ in range(2):
        await _refresh(stand_in, client_auth="private_key_jwt", client_secret=_pem(key))
    seen = set()
    for request in stand_in.requests:
        assert request.parameters["client_assertion_type"].endswith("jwt-bearer")
        claims = jwt.decode(
            request.parameters["client_assertion"],
            key.public_key(),
            algorithms=["RS256" if kind == "rsa" else "ES256"],
            audience=stand_in.token_url,
            issuer=CLIENT_ID,
            subject=CLIENT_ID,
        )
        seen.add(claims["jti"])
        assert "authorization" not in request.headers
    assert len(seen) == 2


# --- revocation


async def _revoke(stand_in: OAuthStandIn, **changes: Any) -> None:
    async with provider_client() as client:
        provider = provider_of(stand_in.entry(**changes))
        await client.revoke(provider, token=SecretStr("some-token"), hint="refresh_token", base_url=None)


async def test_a_token_is_revoked_with_its_hint(stand_in: OAuthStandIn) -> None:
    await _revoke(stand_in)
    assert stand_in.revoked[-1] == "some-token"
    assert stand_in.requests[-1].parameters["token_type_hint"] == "refresh_token"


async def test_a_token_that_the_provider_does_not_know_is_revoked(stand_in: OAuthStandIn) -> None:
    stand_in.script(Answer(status=400, body={"error": "invalid_token"}))
    await _revoke(stand_in)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(status=400, body={"error": "unsupported_token_type"}), RevocationUnsupported),
        (Answer(status=401, body={"error": "invalid_client"}), ProviderMisconfigured),
        (Answer(status=503, body={"error": "invalid_token"}), ProviderUnavailable),
        (Answer(status=302), ProviderUnavailable),
        (Answer(status=401, body={"error": "invalid_token"}), ProviderMisconfigured),
        (Answer(body={"ok": False, "error": "not_authed"}), ProviderMisconfigured),
        (Answer(body="<html>please log in</html>"), ProviderUnavailable),
    ],
)
async def test_a_revocation_that_fails_is_an_error(
    stand_in: OAuthStandIn, answer: Answer, kind: type[VaultError]
) -> None:
    stand_in.script(answer)
    with pytest.raises(kind):
        await _revoke(stand_in)


@pytest.mark.parametrize("revocation", ["token_only", "delete_with_access_token"])
@pytest.mark.parametrize("answer", [Answer(status=401), Answer(status=400, body={"error": "invalid_client"})])
async def test_a_refused_revocation_without_a_client_is_an_error(
    stand_in: OAuthStandIn, revocation: str, answer: Answer
) -> None:
    stand_in.script(answer)
    provider = replace(provider_of(stand_in.entry()), revocation=Revocation(revocation))
    async with provider_client() as client:
        with pytest.raises((ProviderMisconfigured, GrantRejected)):
            await client.revoke(provider, token=SecretStr("some-token"), hint="access_token", base_url=None)


async def test_a_revocation_without_time_left_sends_nothing(stand_in: OAuthStandIn) -> None:
    async with provider_client() as client:
        past = asyncio.get_running_loop().time() - 1
        with pytest.raises(ProviderUnavailable) as late:
            await client.revoke(
                provider_of(stand_in.entry()), token=SecretStr("t"), hint="access_token", base_url=None, until=past
            )
    assert (late.value.sent, stand_in.requests) == (False, [])


async def test_without_an_endpoint_revocation_is_unsupported(stand_in: OAuthStandIn) -> None:
    with pytest.raises(RevocationUnsupported):
        await _revoke(stand_in, revoke_url=None)
    assert stand_in.requests == []


async def test_reprs_and_errors_hold_no_secret(stand_in: OAuthStandIn) -> None:
    provider = provider_of(stand_in.entry(client_secret=CANARY))
    assert CANARY not in repr(provider)
    with pytest.raises(ProviderMisconfigured) as caught:
        await _refresh(stand_in, CANARY, client_secret=CANARY)
    assert CANARY not in repr(caught.value) + str(caught.value) + json.dumps(caught.value.args)
    stand_in.script(Answer(body={"access_token": CANARY, "refresh_token": CANARY}))
    assert CANARY not in repr(await _refresh(stand_in))
