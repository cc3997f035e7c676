"""The Python client against a running service: every operation, conditions, errors, the cache."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import token_vault_client
from token_vault_client import UNSET, TokenCache, TokenId, VaultClient, operations

from tests.support.api.service import Service
from tests.support.api.vault_clients import KINDS, vault_client
from tests.support.sizes import SOAK
from tests.support.stores.stores import Store

# for what depends on the store; `make soak` runs every test on each
STORES = ["sqlite", "postgres", "supabase"]
ON_EVERY_STORE = pytest.mark.parametrize("served", STORES, indirect=True)

SECRET = "ya29.a-secret-4711"


@pytest.fixture(params=STORES if SOAK else STORES[:1])
def served(request: pytest.FixtureRequest) -> tuple[Service, Store]:
    if request.param == "supabase":
        request.getfixturevalue("supabase")  # resets the store
    pair: tuple[Service, Store] = request.getfixturevalue(f"{request.param}_service")
    return pair


@pytest.fixture(params=KINDS)
def vault(request: pytest.FixtureRequest, service: Service) -> Iterator[VaultClient]:
    with vault_client(request.param, service) as client:
        yield client


@pytest.fixture
def user() -> str:
    return str(uuid4())


@ON_EVERY_STORE
def test_the_life_of_a_token(vault: VaultClient, user: str) -> None:
    stored = vault.store(
        user,
        "google",
        access_token=SECRET,
        refresh_token="1//r",
        expires_in=3600,
        scopes=["a", "b"],
        email="a@b.test",
        metadata={"courses": 4},
        service_type="calendar",
    )
    assert (stored.status, stored.scopes, stored.metadata) == ("ok", ("a", "b"), {"courses": 4})
    assert stored.token_id == TokenId(user, "google", "calendar")
    assert stored.expires_at is not None
    assert timedelta(minutes=59) < stored.expires_at - datetime.now(UTC) <= timedelta(hours=1)

    revealed = vault.reveal(user, "google", service_type="calendar", min_ttl=0)
    assert (revealed.access_token, revealed.refresh_token) == (SECRET, None)
    with_refresh = vault.reveal(user, "google", service_type="calendar", include_refresh_token=True)
    assert with_refresh.refresh_token == "1//r"

    patched = vault.patch(
        user, "google", status="needs_reauth", status_reason="why", metadata={"courses": None}, service_type="calendar"
    )
    assert (patched.status, patched.status_reason, patched.metadata) == ("needs_reauth", "why", {})
    with pytest.raises(token_vault_client.TokenInactive):
        vault.reveal(user, "google", service_type="calendar")
    vault.patch(user, "google", status="ok", service_type="calendar")

    rotated = vault.rotate(user, "google", access_token="next", email=None, service_type="calendar")
    assert (rotated.email, rotated.scopes, rotated.has_refresh_token) == (None, ("a", "b"), True)
    assert vault.rewrap(user, "google", service_type="calendar").version == rotated.version
    assert [one.token_id for one in vault.list_for_user(user).tokens] == [stored.token_id]
    assert vault.delete(user, "google", service_type="calendar") is None
    with pytest.raises(token_vault_client.TokenNotFound):
        vault.reveal(user, "google", service_type="calendar")


def test_a_rotation_keeps_or_removes_each_field(vault: VaultClient, user: str) -> None:
    vault.store(user, "google", access_token="a", refresh_token="r", base_url="https://x.test", scopes=["s"])
    kept = vault.rotate(user, "google", access_token="b", refresh_token=UNSET, scopes=UNSET)
    assert (kept.has_refresh_token, kept.base_url, kept.scopes) == (True, "https://x.test", ("s",))
    removed = vault.rotate(user, "google", access_token="c", refresh_token=None, base_url=None, scopes=[])
    assert (removed.has_refresh_token, removed.base_url, removed.scopes) == (False, None, ())


def test_a_providers_token_answer_is_stored_as_it_came(vault: VaultClient, user: str) -> None:
    answer = {"access_token": SECRET, "token_type": "Bearer", "expires_in": "3599", "scope": "a b", "id_token": "x"}
    assert vault.store_token_response(user, "google", answer).scopes == ("a", "b")
    assert vault.reveal(user, "google", min_ttl=0).access_token == SECRET


@ON_EVERY_STORE
def test_conditions_name_a_version(vault: VaultClient, user: str) -> None:
    first = vault.store(user, "google", access_token="one", only_if_absent=True)
    with pytest.raises(token_vault_client.VersionConflict):
        vault.store(user, "google", access_token="two", only_if_absent=True)
    second = vault.rotate(user, "google", access_token="two", if_match=first.version)
    for conflicting in (
        lambda: vault.store(user, "google", access_token="x", if_match=first.version),
        lambda: vault.patch(user, "google", status="error", if_match=first.version),
        lambda: vault.rewrap(user, "google", if_match=first.version),
        lambda: vault.delete(user, "google", if_match=first.version),
    ):
        with pytest.raises(token_vault_client.VersionConflict) as raised:
            conflicting()
        assert not raised.value.outcome_unknown
    vault.delete(user, "google", if_match=second.version)


@ON_EVERY_STORE
def test_a_batch_has_a_token_or_an_error_for_each(vault: VaultClient, user: str) -> None:
    vault.store(user, "google", access_token=SECRET, refresh_token="r")
    found, missing = vault.batch_get(
        [TokenId(user, "google"), TokenId(user, "notion")], include_refresh_tokens=True, min_ttl=0
    )
    assert isinstance(found, token_vault_client.RevealedToken)
    assert (found.access_token, found.refresh_token) == (SECRET, "r")
    assert isinstance(missing, token_vault_client.TokenNotFound)


@ON_EVERY_STORE
def test_erasing_a_user_counts_the_tokens(vault: VaultClient, user: str) -> None:
    vault.store(user, "google", access_token="a")
    vault.store(user, "notion", access_token="b")
    assert vault.erase_user(user).deleted == 2
    assert vault.list_for_user(user).tokens == ()


@ON_EVERY_STORE
def test_all_tokens_are_listed_page_by_page(vault: VaultClient, user: str) -> None:
    soon = datetime.now(UTC) + timedelta(hours=2)
    for number in range(3):
        vault.store(user, "notion", access_token="a", expires_in=3600, service_type=f"s{number}")
    vault.store(user, "notion", access_token="a", expires_in=86_400)
    first = vault.list_page(provider="notion", status="ok", expires_before=soon, limit=1)
    assert len(first.tokens) == 1
    assert vault.list_page(provider="notion", limit=1, cursor=first.next_cursor).tokens != first.tokens
    found = list(vault.list_all(provider="notion", expires_before=soon))
    mine = {one.service_type for one in found if isinstance(one, token_vault_client.Token) and one.user_id == user}
    assert mine == {"s0", "s1", "s2"}


def test_a_revocation_that_is_not_possible_is_in_the_receipt(vault: VaultClient, user: str) -> None:
    vault.store(user, "google", access_token="a")
    receipt = vault.delete(user, "google", revoke="true")
    assert receipt is not None
    assert (receipt.access_token, receipt.refresh_token, receipt.deleted) == ("unsupported", None, True)
    vault.store(user, "google", access_token="a")
    assert vault.erase_user(user, revoke="true").receipts["google", "default"].deleted


def test_a_token_without_provider_is_not_refreshed(vault: VaultClient, user: str) -> None:
    stored = vault.store(user, "google", access_token="a")
    assert not stored.refreshable
    with pytest.raises(token_vault_client.InvalidRequest):
        vault.refresh(user, "google", rejected_version=stored.version)
    with pytest.raises(token_vault_client.InvalidRequest):
        vault.exchange(user, "google", code="c", redirect_uri="https://x.test/cb")


def test_the_state_of_the_vault_is_read(vault: VaultClient, user: str) -> None:
    vault.store(user, "google", access_token="a")
    status = vault.encryption_status()
    assert (status.primary_scheme, status.tokens >= 1, status.due) == ("local:v1", True, 0)
    assert vault.readiness().ready


def test_an_invalid_request_names_its_fields(vault: VaultClient, user: str) -> None:
    with pytest.raises(token_vault_client.InvalidRequest) as raised:
        vault.store_token_response(user, "google", {"error": "invalid_grant"})
    assert raised.value.field_errors == {"access_token": "is required"}
    assert raised.value.status == 422
    assert raised.value.request_id


@pytest.mark.parametrize("kind", KINDS)
def test_scopes_and_users_of_a_key_are_errors_of_their_own(service: Service, user: str, kind: str) -> None:
    with vault_client(kind, service, "read") as reader, pytest.raises(token_vault_client.Forbidden):
        reader.reveal(user, "google")
    with vault_client(kind, service, "expired") as expired, pytest.raises(token_vault_client.Unauthenticated):
        expired.list_for_user(user)
    with vault_client(kind, service) as client, pytest.raises(token_vault_client.VaultError) as raised:
        client.exchange_token("a.b.c", "google")
    assert raised.value.problem["error"] == "unsupported_grant_type"


@pytest.mark.parametrize("kind", KINDS)
def test_purpose_and_user_jwt_go_with_the_call(service: Service, user: str, kind: str) -> None:
    with vault_client(kind, service, "on_behalf_of") as client:
        with pytest.raises(token_vault_client.Forbidden) as raised:
            client.on_behalf_of("a.b.c").list_for_user(user)
        assert "x-on-behalf-of" in raised.value.field_errors
    with vault_client(kind, service) as client, pytest.raises(token_vault_client.InvalidRequest) as refused:
        client.for_purpose("Not-A-Purpose").list_for_user(user)
    assert "x-purpose" in refused.value.field_errors


def test_no_secret_is_in_a_repr_or_an_error(service: Service, vault: VaultClient, user: str) -> None:
    vault.store(user, "google", access_token=SECRET, refresh_token=f"{SECRET}-r")
    revealed = vault.reveal(user, "google", include_refresh_token=True)
    call = operations.store(user, "google", access_token=SECRET)
    with pytest.raises(token_vault_client.InvalidRequest) as raised:
        vault.store(user, "google", access_token=SECRET, email=SECRET)
    shown = repr([revealed, call, vault, raised.value, raised.value.problem, vault.on_behalf_of("jwt-4711")])
    assert SECRET not in shown
    assert service.keys["full"] not in shown
    assert "jwt-4711" not in shown


def test_no_secret_is_in_the_log_of_the_libraries(
    service: Service, vault: VaultClient, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    vault.store(user, "google", access_token=SECRET, refresh_token=f"{SECRET}-r")
    vault.on_behalf_of("jwt-4711")
    assert vault.reveal(user, "google", include_refresh_token=True).access_token == SECRET
    assert "receive_response_headers" in caplog.text, "the libraries have logged what they do"
    for secret in (SECRET, service.keys["full"], "jwt-4711"):
        assert secret not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_answers_until_the_token_changes(service: Service, user: str, kind: str) -> None:
    with vault_client(kind, service, cache=TokenCache()) as caching, vault_client("sync", service) as other:
        caching.store(user, "google", access_token="one", expires_in=3600)
        assert caching.reveal(user, "google").access_token == "one"
        other.rotate(user, "google", access_token="two")
        assert caching.reveal(user, "google").access_token == "one", "from the cache"
        assert caching.reveal(user, "google", min_ttl=7200).access_token == "two", "the cached one is too short"
        assert caching.reveal(user, "google", include_refresh_token=True).access_token == "two"
        other.rotate(user, "google", access_token="three")
        caching.patch(user, "google", metadata={"a": 1})
        assert caching.reveal(user, "google").access_token == "three", "a write of its own empties the cache"
        caching.erase_user(user)
        with pytest.raises(token_vault_client.TokenNotFound):
            caching.reveal(user, "google")


def test_the_cache_keeps_no_token_that_expires_soon(service: Service, user: str) -> None:
    cache = TokenCache(margin_seconds=60)
    with vault_client("sync", service, cache=cache) as client:
        client.store(user, "google", access_token="one", expires_in=50)
        client.reveal(user, "google")
        assert cache.get(TokenId(user, "google")) is None
        client.store(user, "google", access_token="one", refresh_token="r", expires_in=3600)
        client.reveal(user, "google", include_refresh_token=True)
        assert cache.get(TokenId(user, "google")) is None, "never a refresh token"
        client.for_purpose("x").reveal(user, "google")
        assert cache.get(TokenId(user, "google")) is not None
        with pytest.raises(token_vault_client.Forbidden):
            client.on_behalf_of("a.b.c").reveal(user, "google")
