"""Marked secrets pass every route, failure and bad input at DEBUG; no answer, log, file or span contains one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary.run import DATABASE, OF_ANY_STORE, OF_EACH_STORE, SCRIPT, Run, canary_run
from tests.support.canary.search import Place, Secret, find
from tests.support.canary.secrets import Marked
from tests.support.sizes import SOAK
from tests.support.stack.kms import Kms
from tests.support.stack.supabase import LOGIN_PASSWORD
from tests.support.stores.stores import PostgresStore, SqliteStore, SupabaseStore


@pytest.fixture(scope="module", params=["sqlite", "supabase", *(["postgres"] if SOAK else [])])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kms_server: Kms) -> Iterator[Run]:
    """Two workers on SQLite, which share metrics and have their secrets from files; one process on the others."""
    folder = tmp_path_factory.mktemp("canary")
    kms_server.renew()
    if request.param == "sqlite":
        store, commands = SqliteStore(folder / DATABASE), (*OF_EACH_STORE, *OF_ANY_STORE)
        secrets = tmp_path_factory.mktemp("secrets")
        yield canary_run(folder, store, kms_server, supabase_key=None, workers=2, commands=commands, secrets=secrets)
    else:
        stack = request.getfixturevalue("supabase_stack")
        stack.reset()
        kind, key = (SupabaseStore, stack.service_key)
        if request.param == "postgres":
            kind, key = PostgresStore, LOGIN_PASSWORD
        yield canary_run(folder, kind(stack), kms_server, supabase_key=key, workers=1, commands=OF_EACH_STORE)
        stack.reset()
    kms_server.renew()


def test_the_secrets_reach_every_route_and_failure(run: Run) -> None:
    assert run.traffic.statuses >= {200, 201, 204, 400, 401, 403, 404, 405, 409, 412, 413, 422, 500, 503}
    assert {"log", "service-keys.json"} <= {place.name for place in run.files}
    assert [secret for secret in run.others if secret.label.startswith("data key")]
    for secret in run.marked.tokens():
        assert find([secret], run.traffic.reveals), "a reveal contains it, so the search can find it"


def test_audit_events_and_spans_are_kept_to_the_end(run: Run) -> None:
    assert {(event["operation"], event["outcome"]) for event in run.events} >= {
        ("store", "success"),
        ("reveal", "success"),
        ("reveal", "malformed_ciphertext"),
        ("rotate", "success"),
        ("rewrap", "success"),
        ("delete", "success"),
        ("reveal", "unauthenticated"),
        ("refresh", "success"),
        ("refresh", "token_inactive"),
        ("refresh", "provider_unavailable"),
        ("refresh", "provider_misconfigured"),
        ("exchange", "success"),
        ("exchange", "token_inactive"),
        ("revoke", "success"),
    }
    assert (run.trail.findings, run.trail.notes) == ([], [])
    assert {"PUT /v1/users/{user_id}/tokens/{provider}", "store get", "KMS GenerateDataKey"} <= run.spans
    assert run.exit_code == 0
    [log] = [place for place in run.files if place.name == "log"]
    assert b'"reason":"EFBIG"' in log.content, "its disk was full"
    assert b"Failed to export" in log.content, "the collector has refused some"
    assert b"Finished server process" in log.content


def test_no_span_contains_a_secret(run: Run) -> None:
    assert find(run.everything, run.batches) == []


def test_no_answer_but_a_reveal_contains_a_token(run: Run) -> None:
    assert find(run.everything, run.traffic.refusals) == []
    # metadata and scopes are returned as the caller stored them
    never = [secret for secret in run.others if secret.content != run.marked.misplaced.encode()]
    assert find([*never, *run.marked.tokens()], run.traffic.successes) == []
    assert find(run.others, run.traffic.reveals) == []


def test_no_log_or_file_contains_a_secret(run: Run) -> None:
    assert find(run.everything, run.files) == []


def test_no_command_prints_a_secret(run: Run) -> None:
    printed = {place.name: place.content for place in run.commands}
    assert {"doctor: 0", "rewrap: 1", f"{SCRIPT}: 1"} <= printed.keys(), "unreadable rows remain"
    assert "health: 1" in printed, "the vault has stopped"
    wrong_files = {name for name in printed if name.startswith("wrong file")}
    if "doctor: 2" in printed:  # of broken settings, on Supabase only
        assert wrong_files == set()
    else:
        assert wrong_files == {"wrong file, doctor: 2"}
        assert b"Intact: " in printed["audit verify: 0"]
        assert b'"outcome":"success"' in printed["audit show --json: 0"]
    assert find(run.everything, run.commands) == []


def test_no_traceback_is_printed(run: Run) -> None:
    traceback = [Secret.of("a traceback", "Traceback (most recent call last)")]
    assert find(traceback, [*run.files, *run.commands, *run.traffic.refusals]) == []


_DEFECTS = """
import asyncio, gc, httpx, sys, threading, warnings
from app.config.settings import Settings
from app.main import create_app
from fastapi import Request

secret, key = sys.argv[1:]
app = create_app(Settings(token_encryption_key=key, sqlite_path="vault.db", log_level="DEBUG"))

@app.get("/v1/defect/{which}")
async def route(request: Request):
    await defect(request.path_params["which"])

async def defect(which):
    here = secret  # in the frame
    try:
        raise ValueError(here)
    except ValueError as error:
        error.add_note(here)
        if which == "chained":
            raise RuntimeError(here) from error
        if which == "group":
            raise ExceptionGroup(here, [error, KeyError(here)])
        if which == "named":
            raise type(Exception)("Strange", (Exception,), {"__str__": lambda _: here})(here) from None
        raise

async def main():
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://vault") as client:
        for which in ("plain", "chained", "group", "named"):
            answer = await client.get(f"/v1/defect/{which}", params={"token": secret})
            print(answer.status_code, answer.headers, answer.text, file=sys.stderr)
    lost = asyncio.create_task(defect("chained"), name=secret)
    await asyncio.sleep(0.01)
    del lost
    gc.collect()
    asyncio.get_running_loop().call_soon(fail, secret)
    await asyncio.sleep(0.01)

def fail(here):
    raise KeyError(here)

asyncio.run(main())
thread = threading.Thread(target=fail, args=(secret,), name=secret)
thread.start()
thread.join()
warnings.warn(secret)
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_defect_leaks_no_secret(tmp_path: Path, log_format: str) -> None:
    """Not by the text, notes, cause or frames of an exception, in a route or outside of one."""
    marked = Marked()
    done = subprocess.run(
        [sys.executable, "-c", _DEFECTS, marked.access, marked.master_key],
        cwd=tmp_path,
        env={"LOG_FORMAT": log_format},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr.count("500 Headers") == 4
    assert done.stdout.count("internal_error") == 4
    for logged in ("never retrieved", "Exception in callback", "thread_failed", "python_warning"):
        assert done.stdout.count(logged) == 1
    printed = [Place("both streams", (done.stdout + done.stderr).encode())]
    assert find([*marked.tokens(), *marked.others({}, None)], printed) == []
