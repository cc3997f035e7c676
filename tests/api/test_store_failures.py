"""What callers see when Supabase fails, and that no outcome is ever made up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.stack.gateway_faults import Request, every_request, reads, writes
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
TOKENS = f"/v1/users/{USER}/tokens"
CANVAS = f"{TOKENS}/canvas"

CALLS: dict[str, Callable[[httpx.Client], httpx.Response]] = {
    "create": lambda client: client.put(f"{TOKENS}/notion", json={"access_token": "new"}),
    "replace": lambda client: client.put(CANVAS, json={"access_token": "two"}),
    "rotate": lambda client: client.post(f"{CANVAS}/rotate", json={"access_token": "two"}),
    "patch": lambda client: client.patch(CANVAS, json={"status": "error", "reason": "x"}),
    "reveal": lambda client: client.get(CANVAS),
    "list": lambda client: client.get(TOKENS),
    "batch": lambda client: client.post(
        "/v1/tokens/batch-get", json={"tokens": [{"user_id": USER, "provider": "canvas"}] * 3}
    ),
    "delete": lambda client: client.delete(CANVAS),
    "erase": lambda client: client.delete(TOKENS),
}
WRITES = ("create", "replace", "rotate", "patch", "delete")
every_call = pytest.mark.parametrize("call", CALLS)


@pytest.fixture
def project(supabase: SupabaseStack) -> SupabaseStack:
    return supabase


@pytest.fixture
def client(project: SupabaseStack, supabase_service: tuple[Service, SupabaseStore]) -> Iterator[httpx.Client]:
    """A client of a service whose store holds one Canvas token, `one`."""
    del project  # reset, so before the first write
    with supabase_service[0].client() as client:
        assert client.put(CANVAS, json={"access_token": "one"}).status_code == 201
        yield client


def _recovers(client: httpx.Client) -> None:
    deadline = time.monotonic() + 5
    while client.get("/readyz").status_code != 200 or client.get(TOKENS).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@every_call
def test_a_store_that_is_down_is_503_until_it_is_back(client: httpx.Client, project: SupabaseStack, call: str) -> None:
    project.faults.down()
    problem(CALLS[call](client), 503, "store_unavailable")
    if call == "reveal":
        time.sleep(1.1)  # readiness is remembered for a second
        assert client.get("/readyz").json()["checks"]["store"] == "down"
        assert client.get("/healthz").status_code == 200
    project.faults.clear()
    _recovers(client)
    assert client.get(CANVAS).json()["access_token"] == "one"


@every_call
@pytest.mark.parametrize("status", [500, 502, 503, 520, 200, 307])
def test_a_gateway_that_speaks_for_the_store_is_503(
    client: httpx.Client, project: SupabaseStack, call: str, status: int
) -> None:
    if status == 307:
        project.faults.redirect("http://127.0.0.1:1/steal")
    else:
        project.faults.answer(status)
    problem(CALLS[call](client), 503, "store_unavailable")
    project.faults.clear()
    assert client.get(CANVAS).json()["access_token"] == "one"


@every_call
@pytest.mark.parametrize("nonsense", [b"[" * 100_000, b'[{"id":', b"[1]", b'{"a": 1}'])
def test_an_answer_that_is_nonsense_is_503(
    client: httpx.Client, project: SupabaseStack, call: str, nonsense: bytes
) -> None:
    project.faults.answer(200, body=nonsense, content_type="application/json")
    problem(CALLS[call](client), 503, "store_unavailable")
    time.sleep(0.01)
    assert client.get("/readyz").status_code in {200, 503}


def test_a_store_that_answers_with_anothers_row_reveals_nothing(client: httpx.Client, project: SupabaseStack) -> None:
    victim = "/v1/users/00000000-0000-4000-8000-000000000002/tokens/canvas"
    client.put(victim, json={"access_token": "the victim's"})
    row = project.sql("select to_jsonb(t) as row from public.oauth_tokens t where user_id::text like '0000%'")
    body = json.dumps([one["row"] for one in row]).encode()
    project.faults.answer(200, body=body, content_type="application/json", when=reads)
    for answer in (client.get(CANVAS), client.post(f"{CANVAS}/rotate", json={"access_token": "x"})):
        problem(answer, 500, "store_misconfigured")
        assert "victim" not in answer.text


def test_an_erasure_that_arrives_late_takes_no_newer_token(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.delay(before=5, when=lambda request: request.method == "DELETE", times=1)
    problem(client.delete(TOKENS), 504, "store_timeout")
    assert client.put(CANVAS, json={"access_token": "newer"}).status_code == 200
    time.sleep(3.5)
    assert client.get(CANVAS).json()["access_token"] == "newer"


def test_a_missing_column_is_named(project: SupabaseStack, tmp_path_factory: pytest.TempPathFactory) -> None:
    project.sql("alter table public.oauth_tokens rename column version to renamed")
    try:
        project.sql("notify pgrst, 'reload schema'")
        time.sleep(1)
        environment = SupabaseStore(project).environment()
        with running_service(tmp_path_factory.mktemp("column"), environment) as service:
            assert "lacks the columns version" in "\n".join(service.lines())
    finally:
        project.sql("alter table public.oauth_tokens rename column renamed to version")
        project.sql("notify pgrst, 'reload schema'")
        _wait_for_column(project, "version")


def _wait_for_column(project: SupabaseStack, column: str) -> None:
    headers = {"apikey": project.service_key, "Authorization": f"Bearer {project.service_key}"}
    # a write: for those PostgREST looks into its cached schema, for reads PostgreSQL into its own
    url = f"{project.url}/rest/v1/oauth_tokens?user_id=eq.00000000-0000-4000-8000-00000000ffff"
    deadline = time.monotonic() + 10
    while not httpx.patch(url, json={column: 1}, headers=headers, trust_env=False, verify=PLAIN_HTTP).is_success:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_empty_answer_is_not_an_empty_table(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.answer(200, body=b"", content_type="application/json")
    problem(client.get(CANVAS), 503, "store_unavailable")
    problem(client.get(TOKENS), 503, "store_unavailable")


@every_call
def test_a_slow_store_is_504_within_5_seconds(client: httpx.Client, project: SupabaseStack, call: str) -> None:
    project.faults.delay(before=6)
    started = time.monotonic()
    problem(CALLS[call](client), 504, "store_timeout")
    assert time.monotonic() - started < 5


def test_a_store_that_slows_down_at_every_step_is_504_within_5_seconds(
    client: httpx.Client, project: SupabaseStack
) -> None:
    project.faults.delay(before=1.8)
    started = time.monotonic()
    answer = client.put(CANVAS, json={"access_token": "two"})
    assert answer.status_code == 200
    project.faults.delay(before=1.8, after=30, when=writes)
    answer = client.put(CANVAS, json={"access_token": "two"})
    assert time.monotonic() - started < 10
    assert answer.status_code in {200, 504}


@pytest.mark.parametrize("call", WRITES)
@pytest.mark.parametrize("resets", [False, True])
def test_a_write_whose_answer_is_cut_after_the_commit_is_read_back(
    client: httpx.Client, project: SupabaseStack, call: str, resets: bool
) -> None:
    project.faults.cut_after_commit(times=1, when=writes, resets=resets)
    with project.recording() as requests:
        answer = CALLS[call](client)
    assert answer.status_code == {"create": 201, "delete": 204}.get(call, 200), answer.text
    assert len([request for request in requests if writes(request)]) == 1, "a write is never sent twice"
    rows = project.sql("select version, provider from public.oauth_tokens order by provider")
    if call == "create":
        assert [(row["provider"], row["version"]) for row in rows] == [("canvas", 1), ("notion", 1)]
    elif call == "delete":
        assert rows == []
    else:
        assert [row["version"] for row in rows] == [2]
        assert answer.json()["version"] == 2


@pytest.mark.parametrize("call", [*WRITES, "erase"])
def test_a_write_whose_outcome_stays_unknown_is_503_and_no_success(
    client: httpx.Client, project: SupabaseStack, call: str
) -> None:
    """The answer is cut after the commit, and so is every attempt to read the row back."""
    written = False

    def after_the_write(request: Request) -> bool:
        nonlocal written
        written = written or writes(request)
        return written and reads(request)

    project.faults.cut_before(when=after_the_write)  # asked first, so it sees the write go by
    project.faults.cut_after_commit(times=1, when=writes)
    problem(CALLS[call](client), 503, "store_unavailable")


@pytest.mark.parametrize("call", [*WRITES, "erase"])
def test_a_write_that_is_cut_before_the_store_saw_it_is_503(
    client: httpx.Client, project: SupabaseStack, call: str
) -> None:
    project.faults.cut_before(times=1, when=writes)
    before = project.sql("select * from public.oauth_tokens")
    answer = CALLS[call](client)
    if call == "delete" and answer.status_code == 204:
        pytest.fail("a delete that never happened was reported as done")
    problem(answer, 503, "store_unavailable")
    assert project.sql("select * from public.oauth_tokens") == before


def test_a_conditional_write_that_was_cut_still_has_one_winner(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.cut_after_commit(times=1, when=writes)
    first = client.post(f"{CANVAS}/rotate", json={"access_token": "mine"}, headers={"If-Match": '"1"'})
    second = client.post(f"{CANVAS}/rotate", json={"access_token": "theirs"}, headers={"If-Match": '"1"'})
    assert (first.status_code, second.status_code) == (200, 412)
    assert client.get(CANVAS).json()["access_token"] == "mine"


def test_reads_are_cut_without_a_made_up_answer(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.cut_after_commit(when=reads)
    problem(client.get(CANVAS), 503, "store_unavailable")
    problem(client.get(TOKENS), 503, "store_unavailable")


@every_call
def test_postgrest_stopped_is_503(client: httpx.Client, project: SupabaseStack, call: str) -> None:
    project.stop_postgrest()
    problem(CALLS[call](client), 503, "store_unavailable")
    project.start_postgrest()
    _recovers(client)


@pytest.mark.parametrize("which", ["anon_key", "wrong_key", "expired_key"])
def test_a_wrong_key_is_misconfigured_and_not_ready(
    project: SupabaseStack, tmp_path_factory: pytest.TempPathFactory, which: str
) -> None:
    environment = {**SupabaseStore(project).environment(), "SUPABASE_SERVICE_KEY": getattr(project, which)}
    with running_service(tmp_path_factory.mktemp(which), environment) as service, service.client() as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]) == (503, "down")
        assert "SUPABASE_SERVICE_KEY" in "\n".join(service.lines()), "the log says what is wrong"
        assert getattr(project, which) not in "\n".join(service.lines())
        problem(client.put(CANVAS, json={"access_token": "x"}), 500, "store_misconfigured")
        if which != "anon_key":  # row-level security shows anon an empty table; readiness is what notices
            problem(client.get(CANVAS), 500, "store_misconfigured")


def test_a_missing_column_is_misconfigured_until_it_is_back(client: httpx.Client, project: SupabaseStack) -> None:
    project.sql("alter table public.oauth_tokens rename column encryption_scheme to renamed")
    try:
        project.sql("notify pgrst, 'reload schema'")
        deadline = time.monotonic() + 5
        while client.get(CANVAS).status_code == 200:
            assert time.monotonic() < deadline
        for call in CALLS.values():
            if call not in (CALLS["delete"], CALLS["erase"]):
                problem(call(client), 500, "store_misconfigured")
        time.sleep(1.1)
        assert client.get("/readyz").json()["checks"]["store"] == "down"
    finally:
        project.sql("alter table public.oauth_tokens rename column renamed to encryption_scheme")
        project.sql("notify pgrst, 'reload schema'")
    _recovers(client)
    assert client.get(CANVAS).json()["access_token"] == "one"


def test_a_statement_time_out_is_504(client: httpx.Client, project: SupabaseStack) -> None:
    project.sql("alter role service_role set statement_timeout = '200ms'")
    try:
        project.sql("notify pgrst, 'reload config'")
        time.sleep(0.5)
        with project.database.connection.transaction():
            project.sql("lock table public.oauth_tokens in access exclusive mode")
            problem(client.get(CANVAS), 504, "store_timeout")
    finally:
        project.sql("alter role service_role reset statement_timeout")
        project.sql("notify pgrst, 'reload config'")
    time.sleep(0.5)
    assert client.get(CANVAS).status_code == 200


def test_a_user_that_does_not_exist_is_the_callers_mistake(client: httpx.Client, project: SupabaseStack) -> None:
    """PulsePlan's table has a foreign key to its users."""
    project.sql("create table public.users (id uuid primary key)")
    project.sql("insert into public.users select user_id from public.oauth_tokens")
    project.sql("alter table public.oauth_tokens add constraint fk foreign key (user_id) references public.users (id)")
    try:
        stranger = "/v1/users/00000000-0000-4000-8000-000000000000/tokens/canvas"
        problem(client.put(stranger, json={"access_token": "x"}), 422, "invalid_request")
        assert client.put(CANVAS, json={"access_token": "x"}).status_code == 200
    finally:
        project.sql("alter table public.oauth_tokens drop constraint fk")
        project.sql("drop table public.users")


def test_more_rows_than_one_answer_may_hold_are_all_there(client: httpx.Client, project: SupabaseStack) -> None:
    """PostgREST cuts an answer at 1 000 rows without a word."""
    project.sql(
        "insert into public.oauth_tokens (user_id, provider, service_type, access_token)"
        " select '00000000-0000-4000-8000-000000000001', 'google', 's' || n, 'c' from generate_series(1, 2500) n"
    )
    path = "/v1/users/00000000-0000-4000-8000-000000000001/tokens"
    assert len(client.get(path).json()["tokens"]) == 2500
    assert client.delete(path).json() == {"deleted": 2500}


def test_faults_reach_only_the_gateway(client: httpx.Client, project: SupabaseStack) -> None:
    """The suite's own proof that a fault is injected where it says."""
    project.faults.answer(503, when=every_request, times=1)
    assert client.get(CANVAS).status_code == 503
    assert client.get(CANVAS).status_code == 200
