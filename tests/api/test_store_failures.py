"""Answers while Supabase fails: each the problem of its cause, and never an invented outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from app.errors import StoreMisconfigured
from app.stores.supabase.repository import SupabaseRepository
from app.tokens.models import TokenId
from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.stack.gateway_faults import Request, every_request, reads, writes
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore, token
from tests.support.waiting import eventually

HANGS_SECONDS = 120.0
USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
TOKENS = f"/v1/users/{USER}/tokens"
CANVAS = f"{TOKENS}/canvas"

CALLS: dict[str, Callable[[httpx.Client], httpx.Response]] = {
    "create": lambda client: client.put(f"{TOKENS}/notion", json={"access_token": "new"}),
    "replace": lambda client: client.put(CANVAS, json={"access_token": "two"}),
    "rotate": lambda client: client.post(f"{CANVAS}/rotate", json={"access_token": "two"}),
    "patch": lambda client: client.patch(CANVAS, json={"status": "error", "status_reason": "x"}),
    "reveal": lambda client: client.get(CANVAS),
    "list": lambda client: client.get(TOKENS),
    "batch": lambda client: client.post(
        "/v1/tokens/batch-get",
        json={"tokens": [{"user_id": USER, "provider": provider} for provider in ("canvas", "google", "notion")]},
    ),
    "delete": lambda client: client.delete(CANVAS),
    "erase": lambda client: client.delete(TOKENS),
}
WRITES = ("create", "replace", "rotate", "patch", "delete")


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


def _require(status: int, code: str, answers: dict[str, httpx.Response]) -> None:
    assert {call: answer.status_code for call, answer in answers.items()} == dict.fromkeys(answers, status)
    for answer in answers.values():
        problem(answer, status, code)


def _every_call(client: httpx.Client) -> dict[str, httpx.Response]:
    return {name: call(client) for name, call in CALLS.items()}


def _recovers(client: httpx.Client) -> None:
    eventually(lambda: client.get("/readyz").status_code == 200 and client.get(TOKENS).status_code == 200)
    assert client.get(CANVAS).json()["access_token"] == "one"


def test_a_store_that_is_down_is_503_until_it_is_back(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.down()
    _require(503, "store_unavailable", _every_call(client))
    eventually(lambda: client.get("/readyz").json()["checks"]["store"] == "down")
    assert client.get("/healthz").status_code == 200
    project.faults.clear()
    _recovers(client)


@pytest.mark.parametrize("status", [500, 502, 503, 520, 200, 307])
def test_an_answer_of_a_gateway_is_503(client: httpx.Client, project: SupabaseStack, status: int) -> None:
    if status == 307:
        project.faults.redirect("http://127.0.0.1:1/steal")
    else:
        project.faults.answer(status)
    _require(503, "store_unavailable", _every_call(client))
    project.faults.clear()
    assert client.get(CANVAS).json()["access_token"] == "one"


def test_a_gateways_own_error_in_json_is_503(client: httpx.Client, project: SupabaseStack) -> None:
    """Its code is the status as a number; as an SQLSTATE it would be of class 42, which no retry mends."""
    body = json.dumps({"code": 429, "message": "too many requests"}).encode()
    project.faults.answer(429, body=body, content_type="application/json")
    _require(503, "store_unavailable", _every_call(client))


@pytest.mark.parametrize("nonsense", [b"[" * 100_000, b'[{"id":', b"[1]", b'{"a": 1}'], ids=lambda body: str(body[:8]))
def test_an_answer_that_is_nonsense_is_503(client: httpx.Client, project: SupabaseStack, nonsense: bytes) -> None:
    project.faults.answer(200, body=nonsense, content_type="application/json")
    _require(503, "store_unavailable", _every_call(client))
    assert client.get("/readyz").status_code in {200, 503}


def test_a_store_that_returns_another_row_reveals_nothing(client: httpx.Client, project: SupabaseStack) -> None:
    victim = "/v1/users/00000000-0000-4000-8000-000000000002/tokens/canvas"
    client.put(victim, json={"access_token": "the victim's"})
    row = project.sql("select to_jsonb(t) as row from public.oauth_tokens t where user_id::text like '0000%'")
    body = json.dumps([one["row"] for one in row]).encode()
    project.faults.answer(200, body=body, content_type="application/json", when=reads)
    for answer in (client.get(CANVAS), client.post(f"{CANVAS}/rotate", json={"access_token": "x"})):
        problem(answer, 500, "store_misconfigured")
        assert "victim" not in answer.text


def test_an_erasure_that_arrives_late_keeps_a_newer_token(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.delay(before=3, when=lambda request: request.method == "DELETE", times=1)
    problem(client.delete(TOKENS), 504, "store_timeout")
    assert client.put(CANVAS, json={"access_token": "newer"}).is_success
    time.sleep(1.5)  # the erasure arrives
    assert client.get(CANVAS).json()["access_token"] == "newer"


def test_an_empty_answer_is_not_an_empty_table(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.answer(200, body=b"", content_type="application/json")
    problem(client.get(CANVAS), 503, "store_unavailable")
    problem(client.get(TOKENS), 503, "store_unavailable")


def test_a_slow_store_is_504(client: httpx.Client, project: SupabaseStack) -> None:
    """No call waits for the store longer than its deadline; the client would wait much longer."""
    project.faults.delay(before=HANGS_SECONDS)
    with ThreadPoolExecutor(len(CALLS)) as pool:
        answers = dict(zip(CALLS, pool.map(lambda call: call(client), CALLS.values()), strict=True))
    _require(504, "store_timeout", answers)


def test_a_store_that_is_slow_at_every_step_is_504(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.delay(before=0.5)
    assert client.put(CANVAS, json={"access_token": "two"}).status_code == 200
    project.faults.clear()
    project.faults.delay(before=0.5, after=HANGS_SECONDS, when=writes)
    assert client.put(CANVAS, json={"access_token": "two"}).status_code in {200, 504}, "200 if it was read back in time"


@pytest.mark.parametrize("call", WRITES)
@pytest.mark.parametrize("resets", [False, True])
def test_a_write_whose_answer_is_lost_is_read_back(
    client: httpx.Client, project: SupabaseStack, call: str, resets: bool
) -> None:
    [before] = project.sql("select version from public.oauth_tokens where provider = 'canvas'")
    project.faults.cut_after_commit(times=1, when=writes, resets=resets)
    with project.recording() as requests:
        answer = CALLS[call](client)
    assert answer.status_code == {"create": 201, "delete": 204}.get(call, 200), answer.text
    assert len([request for request in requests if writes(request)]) == 1, "a write is never sent twice"
    rows = project.sql("select version, provider from public.oauth_tokens order by provider")
    if call == "create":
        assert [row["provider"] for row in rows] == ["canvas", "notion"]
    elif call == "delete":
        assert rows == []
    else:
        assert [row["version"] for row in rows] == [before["version"] + 1] == [answer.json()["version"]]


@pytest.mark.parametrize("call", [*WRITES, "erase"])
def test_a_write_whose_outcome_stays_unknown_is_503(client: httpx.Client, project: SupabaseStack, call: str) -> None:
    """The answer is lost after the commit, and so is every answer to reading the row back."""
    written = False

    def after_the_write(request: Request) -> bool:
        nonlocal written
        written = written or writes(request)
        return written and reads(request)

    project.faults.cut_before(when=after_the_write)  # injected first, so its predicate sees the write too
    project.faults.cut_after_commit(times=1, when=writes)
    problem(CALLS[call](client), 503, "store_unavailable")


@pytest.mark.parametrize("call", [*WRITES, "erase"])
def test_a_write_that_never_reaches_the_store_is_503(client: httpx.Client, project: SupabaseStack, call: str) -> None:
    project.faults.cut_before(times=1, when=writes)
    before = project.sql("select * from public.oauth_tokens")
    answer = CALLS[call](client)
    if call == "delete" and answer.status_code == 204:
        pytest.fail("a delete that did not happen was reported as done")
    problem(answer, 503, "store_unavailable")
    assert project.sql("select * from public.oauth_tokens") == before


def test_a_conditional_write_whose_answer_is_lost_has_one_winner(client: httpx.Client, project: SupabaseStack) -> None:
    on_condition = {"If-Match": client.get(CANVAS).headers["etag"]}
    project.faults.cut_after_commit(times=1, when=writes)
    first = client.post(f"{CANVAS}/rotate", json={"access_token": "mine"}, headers=on_condition)
    second = client.post(f"{CANVAS}/rotate", json={"access_token": "theirs"}, headers=on_condition)
    assert (first.status_code, second.status_code) == (200, 412)
    assert client.get(CANVAS).json()["access_token"] == "mine"


def _another_writer_first(project: SupabaseStack, method: str, *statements: str) -> Callable[[Request], bool]:
    """Return a predicate for requests of one method that lets another writer change the row before them."""

    def matches(request: Request) -> bool:
        if request.method != method:
            return False
        for statement in statements:
            project.sql(statement)
        return True

    return matches


@pytest.mark.parametrize(("conditional", "status"), [(True, 503), (False, 204)])
def test_a_row_that_is_gone_proves_no_conditional_delete(
    client: httpx.Client, project: SupabaseStack, conditional: bool, status: int
) -> None:
    """Another caller changes and deletes the token while the answer is lost, so the condition no longer held."""
    headers = {"If-Match": client.get(CANVAS).headers["etag"]} if conditional else {}
    change = "update public.oauth_tokens set version = version + 1"
    other = _another_writer_first(project, "DELETE", change, "delete from public.oauth_tokens")
    project.faults.cut_before(times=1, when=other)
    answer = client.delete(CANVAS, headers=headers)
    assert answer.status_code == status, answer.text
    if conditional:
        problem(answer, 503, "store_unavailable")
    assert client.get(CANVAS).status_code == 404


def test_a_conditional_delete_with_a_lost_answer_is_unknown(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.cut_after_commit(times=1, when=writes)
    problem(client.delete(CANVAS, headers={"If-Match": client.get(CANVAS).headers["etag"]}), 503, "store_unavailable")
    assert client.get(CANVAS).status_code == 404


def test_an_equal_patch_of_another_writer_is_not_believed(client: httpx.Client, project: SupabaseStack) -> None:
    other = _another_writer_first(
        project,
        "PATCH",
        "update public.oauth_tokens set version = version + 1, is_active = false, updated_at = now(),"
        """ metadata = metadata || '{"status": "error", "status_reason": "x"}'""",
    )
    project.faults.cut_before(times=1, when=other)
    problem(CALLS["patch"](client), 503, "store_unavailable")


def test_a_read_whose_answer_is_lost_is_503(client: httpx.Client, project: SupabaseStack) -> None:
    project.faults.cut_after_commit(when=reads)
    problem(client.get(CANVAS), 503, "store_unavailable")
    problem(client.get(TOKENS), 503, "store_unavailable")


def test_postgrest_stopped_is_503(client: httpx.Client, project: SupabaseStack) -> None:
    project.stop_postgrest()
    answers = _every_call(client)
    project.start_postgrest()
    _require(503, "store_unavailable", answers)
    _recovers(client)


@pytest.mark.parametrize("which", ["anon", "wrong", "expired"])
async def test_a_wrong_key_is_misconfigured(project: SupabaseStack, which: str) -> None:
    """Row-level security shows an empty table to the anonymous role, so for that one only the check fails."""
    key = getattr(project.keys, which)
    repository = await SupabaseRepository.connect(url=project.url, service_key=SecretStr(key))
    try:
        with pytest.raises(StoreMisconfigured, match="SUPABASE_SERVICE_KEY") as caught:
            await repository.check()
        assert key not in str(caught.value)
        with pytest.raises(StoreMisconfigured):
            await repository.insert(token(TokenId(USER, "canvas")))
        if which != "anon":
            with pytest.raises(StoreMisconfigured):
                await repository.get(TokenId(USER, "canvas"))
    finally:
        await repository.close()


def test_a_service_with_a_wrong_key_is_not_ready(project: SupabaseStack, tmp_path: Path) -> None:
    environment = {**SupabaseStore(project).environment(), "SUPABASE_SERVICE_KEY": project.keys.wrong}
    with running_service(tmp_path, environment) as service, service.client() as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]) == (503, "down")
        log = "\n".join(service.lines())
        assert "SUPABASE_SERVICE_KEY" in log
        assert project.keys.wrong not in log
        problem(client.put(CANVAS, json={"access_token": "x"}), 500, "store_misconfigured")


def test_a_missing_column_is_misconfigured_and_named_in_the_log(
    client: httpx.Client, project: SupabaseStack, supabase_service: tuple[Service, SupabaseStore]
) -> None:
    project.sql("alter table public.oauth_tokens rename column encryption_scheme to renamed")
    try:
        with supabase_service[0].logged() as lines:
            project.sql("notify pgrst, 'reload schema'")
            eventually(lambda: client.get(CANVAS).status_code != 200)
            answers = _every_call(client)
            eventually(lambda: client.get("/readyz").json()["checks"]["store"] == "down")
    finally:
        project.sql("alter table public.oauth_tokens rename column renamed to encryption_scheme")
        project.sql("notify pgrst, 'reload schema'")
    for needs_no_column in ("delete", "erase"):
        del answers[needs_no_column]
    _require(500, "store_misconfigured", answers)
    assert "lacks the columns encryption_scheme" in json.dumps(lines)
    eventually(lambda: client.get("/readyz").status_code == 200)
    eventually(lambda: client.put(CANVAS, json={"access_token": "one"}).is_success)
    _recovers(client)


def test_a_statement_time_out_is_504(client: httpx.Client, project: SupabaseStack) -> None:
    project.sql("alter role token_vault set statement_timeout = '200ms'")
    try:
        project.sql("notify pgrst, 'reload config'")
        time.sleep(0.5)  # PostgREST reads its configuration
        with project.database.connection.transaction():
            project.sql("lock table public.oauth_tokens in access exclusive mode")
            problem(client.get(CANVAS), 504, "store_timeout")
    finally:
        project.sql("alter role token_vault reset statement_timeout")
        project.sql("notify pgrst, 'reload config'")
    eventually(lambda: client.get(CANVAS).status_code == 200)


def test_an_unknown_user_is_an_invalid_request(client: httpx.Client, project: SupabaseStack) -> None:
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


def _rows_of_one_answer(project: SupabaseStack) -> int:
    headers = {"apikey": project.service_key, "Authorization": f"Bearer {project.service_key}"}
    url = f"{project.url}/rest/v1/oauth_tokens?select=id"
    return len(httpx.get(url, headers=headers, timeout=60, trust_env=False, verify=PLAIN_HTTP).json())


def test_more_rows_than_one_answer_holds_are_all_listed(client: httpx.Client, project: SupabaseStack) -> None:
    """PostgREST truncates an answer at the `max-rows` of the project without notice."""
    project.sql(
        "insert into public.oauth_tokens (user_id, provider, service_type, access_token)"
        " select '00000000-0000-4000-8000-000000000001', 'google', 's' || n, 'c' from generate_series(1, 450) n"
    )
    path = "/v1/users/00000000-0000-4000-8000-000000000001/tokens"
    with project.at_most(100):
        eventually(lambda: _rows_of_one_answer(project) == 100)
        assert len(client.get(path).json()["tokens"]) == 450
    eventually(lambda: client.delete(path).is_success)
    assert client.get(path).json() == {"tokens": []}


def test_a_fault_affects_one_request(client: httpx.Client, project: SupabaseStack) -> None:
    """Check of the test itself: a fault of one request affects one request."""
    project.faults.answer(503, when=every_request, times=1)
    assert client.get(CANVAS).status_code == 503
    assert client.get(CANVAS).status_code == 200
