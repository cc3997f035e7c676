"""Each fault of the gateway stand-in takes effect; otherwise the tests that inject it would prove nothing."""

import time
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from tests.support.stack.gateway_faults import Cut, Fault, Reply, Request, reads, writes
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stack.supabase import SupabaseStack
from tests.support.waiting import eventually

TABLE = "/rest/v1/oauth_tokens"
SEES_EVERY_ROW = "/rest/v1/rpc/token_vault_sees_every_row"


def headers(key: str) -> dict[str, str]:
    return {"apikey": key, "Authorization": f"Bearer {key}"}


@pytest.fixture
def client(supabase: SupabaseStack) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=supabase.url, headers=headers(supabase.service_key), timeout=30, verify=PLAIN_HTTP
    ) as client:
        yield client


def insert(client: httpx.Client, *, read_seconds: float = 30) -> httpx.Response:
    row = {"user_id": str(uuid4()), "provider": "canvas", "access_token": "v1:…"}
    return client.post(TABLE, json=row, timeout=httpx.Timeout(30, read=read_seconds))


def stored(supabase: SupabaseStack) -> int:
    return len(supabase.sql("select id from public.oauth_tokens"))


def test_requests_reach_postgrest_and_are_recorded(supabase: SupabaseStack, client: httpx.Client) -> None:
    before = supabase.gateway.request_count

    with supabase.recording() as requests:
        assert insert(client).status_code == 201
        assert [row["provider"] for row in client.get(TABLE, params={"limit": 9}).json()] == ["canvas"]
        assert client.head(TABLE).status_code == 200
        assert client.delete(TABLE, params={"provider": "eq.canvas"}).status_code == 204

    assert [request.method for request in requests] == ["POST", "GET", "HEAD", "DELETE"]
    assert requests[1] == Request("GET", f"{TABLE}?limit=9")
    assert supabase.gateway.request_count == before + 4
    assert stored(supabase) == 0


def test_a_long_answer_arrives_complete(supabase: SupabaseStack, client: httpx.Client) -> None:
    supabase.sql(
        "insert into public.oauth_tokens (user_id, provider, access_token)"
        " select gen_random_uuid(), 'canvas', repeat('x', 5000) from generate_series(1, 1100)"
    )

    rows = client.get(TABLE).json()

    assert len(rows) == 1000  # PostgREST's own cap
    assert all(len(row["access_token"]) == 5000 for row in rows)


def test_only_known_keys_pass(supabase: SupabaseStack) -> None:
    with httpx.Client(base_url=supabase.url, verify=PLAIN_HTTP) as client:
        missing = client.get(TABLE)
        wrong = client.get(TABLE, headers=headers(supabase.keys.wrong))
        mixed = client.get(
            TABLE,
            headers=headers(supabase.keys.wrong) | {"apikey": supabase.service_key},
        )
        expired = client.get(TABLE, headers=headers(supabase.keys.expired))
        elsewhere = client.get("/storage/v1/x", headers=headers(supabase.service_key))

    assert missing.status_code == 401
    assert missing.json() == {"message": "No API key found in request"}
    assert wrong.status_code == 401
    assert wrong.json() == {"message": "Invalid authentication credentials"}
    assert (mixed.status_code, mixed.json()["code"]) == (401, "PGRST301")
    assert (expired.status_code, expired.json()["message"]) == (401, "JWT expired")
    assert elsewhere.status_code == 404


def test_postgrest_accepts_a_key_for_30_seconds_after_its_expiry(supabase: SupabaseStack) -> None:
    with httpx.Client(base_url=supabase.url, verify=PLAIN_HTTP) as client:
        for expired_for_seconds, status in ((5, 200), (35, 401)):
            key = supabase.new_service_key(lifetime_seconds=-expired_for_seconds)
            assert client.get(TABLE, headers=headers(key)).status_code == status


@pytest.mark.parametrize("authorised", [True, False])
def test_a_secret_key_stands_for_the_service_role(supabase: SupabaseStack, *, authorised: bool) -> None:
    key = supabase.keys.secret
    sent = headers(key) if authorised else {"apikey": key}

    assert httpx.get(f"{supabase.url}{SEES_EVERY_ROW}", headers=sent, verify=PLAIN_HTTP).json() is True


def test_a_delay_before_holds_the_request_back(supabase: SupabaseStack, client: httpx.Client) -> None:
    supabase.faults.delay(before=60, times=1)
    with pytest.raises(httpx.ReadTimeout):
        insert(client, read_seconds=0.3)
    assert stored(supabase) == 0

    supabase.faults.delay(before=0.3, times=1)
    start = time.monotonic()
    assert insert(client).status_code == 201
    assert time.monotonic() - start >= 0.3


def test_a_held_back_request_arrives_after_its_client_has_left(supabase: SupabaseStack, client: httpx.Client) -> None:
    supabase.faults.delay(before=0.5, times=1)
    with pytest.raises(httpx.ReadTimeout):
        insert(client, read_seconds=0.1)

    eventually(lambda: stored(supabase) == 1)


def test_a_reset_drops_requests_that_are_held_back(supabase: SupabaseStack, client: httpx.Client) -> None:
    supabase.faults.delay(before=0.5, times=1)
    with pytest.raises(httpx.ReadTimeout):
        insert(client, read_seconds=0.1)

    supabase.reset()
    time.sleep(0.7)

    assert stored(supabase) == 0


def test_a_delay_after_starts_once_the_row_is_committed(supabase: SupabaseStack, client: httpx.Client) -> None:
    supabase.faults.delay(after=60, times=1)
    with pytest.raises(httpx.ReadTimeout):
        insert(client, read_seconds=0.3)

    eventually(lambda: stored(supabase) == 1)


@pytest.mark.parametrize("status", [200, 429, 500, 503, 525])
def test_a_page_answers_instead_of_postgrest(supabase: SupabaseStack, client: httpx.Client, status: int) -> None:
    supabase.faults.answer(status, times=2)

    for _ in range(2):
        answer = insert(client)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")
        assert "<html>" in answer.text
    assert stored(supabase) == 0
    assert insert(client).status_code == 201


def test_an_answer_can_have_any_body(supabase: SupabaseStack, client: httpx.Client) -> None:
    supabase.faults.answer(500, body=b'{"code": "57014"}', content_type="application/json", when=reads)

    assert client.get(TABLE).json() == {"code": "57014"}
    assert insert(client).status_code == 201


def test_a_redirect_names_another_host(supabase: SupabaseStack, client: httpx.Client) -> None:
    supabase.faults.redirect("http://elsewhere.invalid/", times=1)

    answer = insert(client)

    assert answer.status_code == 307
    assert answer.headers["location"] == "http://elsewhere.invalid/"
    assert stored(supabase) == 0


@pytest.mark.parametrize(("resets", "error"), [(False, httpx.RemoteProtocolError), (True, httpx.ReadError)])
def test_a_cut_before_loses_the_request(
    supabase: SupabaseStack,
    client: httpx.Client,
    error: type[Exception],
    *,
    resets: bool,
) -> None:
    supabase.faults.cut_before(resets=resets, times=1, when=writes)

    assert client.get(TABLE).json() == []
    with pytest.raises(error):
        insert(client)

    assert stored(supabase) == 0
    assert insert(client).status_code == 201


@pytest.mark.parametrize(("resets", "error"), [(False, httpx.RemoteProtocolError), (True, httpx.ReadError)])
def test_a_cut_after_commit_loses_only_the_answer(
    supabase: SupabaseStack,
    client: httpx.Client,
    error: type[Exception],
    *,
    resets: bool,
) -> None:
    supabase.faults.cut_after_commit(resets=resets, times=1, when=writes)

    with pytest.raises(error):
        insert(client)

    assert stored(supabase) == 1
    assert len(client.get(TABLE).json()) == 1


def test_faults_can_apply_to_writes_only(supabase: SupabaseStack, client: httpx.Client) -> None:
    supabase.faults.answer(503, when=writes)

    assert client.get(TABLE).status_code == 200
    assert client.post(SEES_EVERY_ROW).json() is True
    assert insert(client).status_code == 503
    assert client.patch(TABLE, params={"provider": "eq.x"}, json={}).status_code == 503
    assert client.delete(TABLE, params={"provider": "eq.x"}).status_code == 503


def test_the_parts_of_a_fault_combine(supabase: SupabaseStack, client: httpx.Client) -> None:
    fault = Fault(delay_after_seconds=0.3, cut=Cut.AFTER_THE_ANSWER)
    supabase.faults.inject(fault, times=1, when=writes)
    supabase.faults.inject(Fault(reply=Reply(status=503)), times=1, when=writes)
    start = time.monotonic()

    with pytest.raises(httpx.RemoteProtocolError):
        insert(client)

    assert time.monotonic() - start >= 0.3
    assert insert(client).status_code == 503
    assert stored(supabase) == 1


def test_down_refuses_new_connections_and_cuts_open_ones(supabase: SupabaseStack, client: httpx.Client) -> None:
    assert client.get(TABLE).status_code == 200

    supabase.faults.down()
    with pytest.raises(httpx.TransportError):  # the connection from before
        client.get(TABLE)
    with pytest.raises(httpx.ConnectError):
        client.get(TABLE)

    supabase.faults.clear()
    assert client.get(TABLE).status_code == 200


def test_without_postgrest_the_gateway_answers_502(supabase: SupabaseStack, client: httpx.Client) -> None:
    assert client.get(TABLE).status_code == 200

    supabase.stop_postgrest()
    assert client.get(TABLE).status_code == 502

    supabase.start_postgrest()
    assert client.get(TABLE).status_code == 200
