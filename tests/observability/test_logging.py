"""The log lines of requests, libraries and errors, and no secret in them."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.api.service import Service
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CANVAS = f"/v1/users/{USER}/tokens/canvas"
SECRET = "CANARY-access-token"
REFRESH = "CANARY-refresh-token"


def test_a_request_line_has_the_facts_of_its_operation_but_no_secret(service: Service) -> None:
    batch = {"tokens": [{"user_id": USER, "provider": "canvas"}, {"user_id": USER, "provider": "google"}]}
    with service.logged() as lines, service.client() as client:
        client.headers["X-Request-ID"] = "request-1"
        client.put(CANVAS, json={"access_token": SECRET, "refresh_token": REFRESH})
        client.get(CANVAS, params={"include": "refresh_token"})
        client.post(f"{CANVAS}/rotate", json={"access_token": SECRET})
        client.post(f"{CANVAS}/rotate", json={"access_token": SECRET}, headers={"If-Match": '"1"'})
        client.patch(CANVAS, json={"status": "revoked", "status_reason": "x"})
        client.get(CANVAS)
        client.get(f"/v1/users/{USER}/tokens")
        client.post("/v1/tokens/batch-get", json=batch)
        client.delete(CANVAS)
        client.get(CANVAS)
        client.delete(f"/v1/users/{USER}/tokens")
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["operation"], line["status"], line["outcome"]) for line in requests if "operation" in line] == [
        ("store", 201, "success"),
        ("reveal", 200, "success"),
        ("rotate", 200, "success"),
        ("rotate", 412, "version_conflict"),
        ("patch", 200, "success"),
        ("reveal", 409, "token_inactive"),
        ("list", 200, "success"),
        ("delete", 204, "success"),
        ("reveal", 404, "token_not_found"),
        ("erase_user", 200, "success"),
    ]
    [whole_batch] = [line for line in requests if "operation" not in line]
    assert (whole_batch["route"], whole_batch["operations"]) == ("/v1/tokens/batch-get", 2)
    items = [line for line in lines if line["event"] == "token_operation"]
    assert [(line["operation"], line["provider"], line["outcome"]) for line in items] == [
        ("reveal", "canvas", "token_inactive"),
        ("reveal", "google", "token_not_found"),
    ]
    assert len(lines) == len(requests) + len(items), "no other line"
    for line in lines:
        assert (line["service"], line["request_id"]) == ("full", "request-1")
        assert line is whole_batch or line["user_id"] == USER
    first = requests[0]
    assert (first["provider"], first["service_type"], first["encryption_method"]) == (
        "canvas",
        "default",
        "aes256-gcm-v1",
    )
    assert (first["method"], first["route"], first["level"]) == (
        "PUT",
        "/v1/users/{user_id}/tokens/{provider}",
        "info",
    )
    assert 0 < first["duration_ms"] < 5_000
    assert "CANARY" not in json.dumps(lines)


def test_a_reveal_and_a_refusal_log_one_line_each(service: Service) -> None:
    with service.client() as client:
        client.put(CANVAS, json={"access_token": SECRET})
        for path, outcome in ((CANVAS, "success"), (f"/v1/users/{USER}/tokens/x", "token_not_found")):
            with service.logged() as lines:
                client.get(path)
            assert [(line["event"], line["outcome"]) for line in lines] == [("request", outcome)]
    with service.logged() as lines, service.client("canvas") as client:
        client.get(f"/v1/users/{USER}/tokens/google")
    assert [(line["event"], line["outcome"], line["user_id"], line["provider"]) for line in lines] == [
        ("request", "forbidden", USER, "google")
    ]


def test_a_batch_logs_one_line_and_one_more_for_each_failure(service: Service) -> None:
    asked = [{"user_id": USER, "provider": name} for name in ("canvas", "google", "apple", "notion")]
    with service.client() as client:
        for one in asked[:3]:
            client.put(f"/v1/users/{USER}/tokens/{one['provider']}", json={"access_token": SECRET})
        with service.logged() as well:
            client.post("/v1/tokens/batch-get", json={"tokens": asked[:3]})
        with service.logged() as one_missing:
            client.post("/v1/tokens/batch-get", json={"tokens": asked})
    assert [(line["event"], line["operations"]) for line in well] == [("request", 3)]
    assert [(line["event"], line.get("provider")) for line in one_missing] == [
        ("token_operation", "notion"),
        ("request", None),
    ]


def test_neither_a_raw_path_nor_a_query_string_is_logged(service: Service) -> None:
    with service.logged() as lines, service.client() as client:
        client.get(f"/v1/{SECRET}/x", params={"token": SECRET})
        client.get(f"/v1/users/{SECRET}/tokens/canvas", params={"service_type": SECRET})
        client.get(CANVAS, params={SECRET: SECRET})
        client.get("/healthz", params={"token": SECRET})
    assert [(line["route"], line["status"], line["level"]) for line in lines] == [
        (None, 404, "warning"),
        ("/v1/users/{user_id}/tokens/{provider}", 422, "warning"),
        ("/v1/users/{user_id}/tokens/{provider}", 422, "warning"),
        ("/healthz", 200, "debug"),
    ]
    assert "CANARY" not in json.dumps(lines)
    assert lines[1]["provider"] == "canvas"
    assert "user_id" not in lines[1], "it is not a UUID"


def test_an_unknown_method_is_logged_with_its_status(service: Service) -> None:
    with service.logged() as lines, service.client() as client:
        client.post(CANVAS)
    assert [(line["status"], line["outcome"]) for line in lines] == [(405, "method_not_allowed")]


def test_no_secret_is_logged_at_debug_level_while_the_store_fails(
    supabase: SupabaseStack, supabase_service: tuple[Service, SupabaseStore]
) -> None:
    service = supabase_service[0]
    body = {"access_token": SECRET, "refresh_token": REFRESH}
    with service.logged() as lines, service.client() as client:
        client.put(CANVAS, json=body)
        answers = [client.get(CANVAS, params={"include": "refresh_token"}).json()]
        row = SupabaseStore(supabase).rows()[0]
        as_json = "application/json"
        failures: list[Callable[[], None]] = [
            supabase.faults.down,
            lambda: supabase.faults.answer(500),
            lambda: supabase.faults.answer(400, body=json.dumps({"code": "23502", "details": SECRET}).encode()),
            lambda: supabase.faults.answer(200, body=json.dumps([{"id": SECRET}]).encode(), content_type=as_json),
            lambda: supabase.faults.answer(200, body=SECRET.encode()),
            supabase.faults.cut_after_commit,
        ]
        for fail in failures:
            fail()
            for answer in (client.put(CANVAS, json=body), client.get(CANVAS), client.get(f"/v1/users/{USER}/tokens")):
                assert answer.status_code >= 500
                answers.append(answer.json())
            supabase.faults.clear()
    written = json.dumps(lines)
    for secret in (SECRET, REFRESH, row["access_token"], service.keys["full"], supabase.service_key):
        assert secret not in written
        assert secret not in json.dumps(answers[1:])
    assert "supabase" not in written, "no host, no library's text"


def test_an_exception_is_logged_by_type_and_frames_without_its_text(tmp_path: Path) -> None:
    program = f"""
import logging, structlog
from app.observability.logging import configure_logging
configure_logging(level="DEBUG", log_format="json")
def fail():
    secret = {SECRET!r}
    raise ValueError("text with " + secret)
for log in (structlog.get_logger().error, logging.getLogger("some.library").error):
    try:
        fail()
    except ValueError:
        log("it_failed", exc_info=True)
logging.getLogger("httpcore").debug({SECRET!r})
logging.getLogger("httpx").info({SECRET!r})
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120
    )
    lines = [json.loads(line) for line in output.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["it_failed", "it_failed"]
    for line in lines:
        assert line["exception"] == "ValueError"
        assert any(frame.endswith("fail") for frame in line["frames"])
    assert "CANARY" not in output.stdout + output.stderr


def test_a_line_is_json_whatever_its_fields_hold(tmp_path: Path) -> None:
    program = """
import pathlib, structlog
from app.observability.logging import configure_logging
configure_logging(level="INFO", log_format="json")
log = structlog.get_logger()
log.info("odd", reason="\\ud800", keys=2**70)
log.info("odd", reason=pathlib.Path("x"), keys={1, 2}, seconds=float("nan"))
log.info("odd", reason="\\n\\x00\\u2028")
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=tmp_path, timeout=120)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    surrogate, objects, controls = (json.loads(line, parse_constant=refuse) for line in output.stdout.splitlines())
    assert (surrogate["reason"], surrogate["keys"]) == ("\ud800", 2**70)
    assert (objects["reason"], objects["keys"], objects["seconds"]) == ("PosixPath", "set", None)
    assert controls["reason"] == "\n\x00\u2028"
    assert output.stderr == b""


def test_the_line_of_the_deepest_stack_fits_into_pipe_buf(tmp_path: Path) -> None:
    program = f"""
import logging, structlog
from app.observability.logging import configure_logging
configure_logging(level="INFO", log_format="json")
def deep_{"x" * 200}(n):
    deep_{"x" * 200}(n + 1)
for log in (structlog.get_logger().error, logging.getLogger("some.library").error):
    try:
        deep_{"x" * 200}(0)
    except RecursionError:
        log("failed" * 1_000 if log.__self__.__class__ is logging.Logger else "failed", exc_info=True)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=tmp_path, timeout=120)
    lines = output.stdout.splitlines(keepends=True)
    assert len(lines) == 2
    for line in lines:
        assert len(line) <= select.PIPE_BUF
        frames = json.loads(line)["frames"]
        assert [frame for frame in frames if frame.endswith("more)")] == [frames[12]]
        assert len(frames) == 25


def test_a_defect_is_answered_with_internal_and_logged_without_text(tmp_path: Path) -> None:
    """A route that raises an unexpected exception, in the real application."""
    program = f"""
import asyncio, httpx, sys
from app.config.settings import Settings
from app.main import create_app

app = create_app(Settings(token_encryption_key="{MASTER_KEY}", sqlite_path="vault.db"))

@app.get("/v1/defect")
async def defect():
    raise RuntimeError("{SECRET}")

async def main():
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://vault") as client:
        answer = await client.get("/v1/defect", headers={{"X-Request-ID": "request-9"}})
    print(answer.status_code, answer.headers["cache-control"], answer.text, file=sys.stderr)

asyncio.run(main())
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120
    )
    line, request = output.stdout.splitlines()
    assert output.stderr.startswith("500 no-store ")
    assert '"code":"internal"' in output.stderr
    logged = json.loads(line)
    assert (logged["event"], logged["exception"], logged["request_id"]) == (
        "internal_error",
        "RuntimeError",
        "request-9",
    )
    request_line = json.loads(request)
    assert (request_line["event"], request_line["status"], request_line["outcome"]) == ("request", 500, "internal")
    assert "CANARY" not in output.stdout + output.stderr


_UNCAUGHT = """
import asyncio, gc, logging, sys, threading, uvloop, warnings
from app.observability.logging import configure_logging
from app.observability.unhandled import log_unhandled_in_loop

secret, which, loop_kind = sys.argv[1:]
configure_logging(level="DEBUG", log_format="json")

async def lost():
    raise ValueError(secret)

def failing(argument):
    raise KeyError(argument)

async def main():
    if which == "handled":
        asyncio.get_running_loop().set_exception_handler(log_unhandled_in_loop)
    task = asyncio.create_task(lost(), name=secret)
    await asyncio.sleep(0.01)
    del task
    gc.collect()
    asyncio.get_running_loop().call_soon(failing, secret)
    asyncio.get_running_loop().call_exception_handler({"message": "Odd thing <" + secret})
    await asyncio.sleep(0.01)

(uvloop if loop_kind == "uvloop" else asyncio).run(main())
thread = threading.Thread(target=failing, args=(secret,), name=secret)
thread.start()
thread.join()
warnings.warn(secret)

class Odd:
    def __del__(self):
        raise ValueError(secret)

Odd()
logging.getLogger("some.library").error(ValueError(secret))
logging.getLogger("some.library").error("a head\\n" + secret)
failing(secret)
"""


@pytest.mark.parametrize("loop_kind", ["uvloop", "asyncio"])
@pytest.mark.parametrize("which", ["handled", "default"])
def test_unhandled_errors_are_logged_by_type_and_frames(tmp_path: Path, which: str, loop_kind: str) -> None:
    """A lost task, a failing callback, a thread, a warning, a finaliser, and the program itself."""
    output = subprocess.run(
        [sys.executable, "-c", _UNCAUGHT, SECRET, which, loop_kind],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    assert (output.returncode, output.stderr) == (1, "")
    assert "CANARY" not in output.stdout
    lines = [json.loads(line) for line in output.stdout.splitlines()]
    messages = ["Task exception was never retrieved", "Odd thing", "Exception in callback"]
    in_loop = [line["reason"] if which == "handled" else line["event"] for line in lines[:3]]
    assert in_loop == messages
    assert {line["event"] for line in lines[:3]} == ({"unhandled_in_loop"} if which == "handled" else set(messages))
    assert [line.get("exception") for line in lines[:3]] == ["ValueError", None, "KeyError"]
    assert [(line["event"], line.get("exception")) for line in lines[3:]] == [
        ("thread_failed", "KeyError"),
        ("python_warning", "UserWarning"),
        ("unraisable", "ValueError"),
        ("ValueError", None),
        ("a head", None),
        ("failed", "KeyError"),
    ]
    for line in lines[3:6] + lines[8:]:
        assert line["frames"]
