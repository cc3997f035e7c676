"""`python -m tests.support.stack` serves, and its parts end with it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest

from tests.support.paths import ROOT
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.waiting import eventually

STOP_SECONDS = 120


@pytest.fixture
def stack() -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.stack"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(timeout=STOP_SECONDS)


def parts_of(process: subprocess.Popen[str], environment: dict[str, str]) -> list[int]:
    """Return the process ids of the reaper, PostgREST and the PostgreSQL server, which detaches itself."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    with psycopg.connect(environment["POSTGRES_URI"]) as connection:
        settings = connection.execute("show data_directory").fetchone()
        assert settings is not None
        postmaster = Path(settings[0], "postmaster.pid").read_text().splitlines()[0]
    return [int(pid) for pid in (*children, postmaster)]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # in a container nothing may reap a process whose parent has ended
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_its_parts_end_with_the_stack(stack: tuple[subprocess.Popen[str], dict[str, str]], how: signal.Signals) -> None:
    process, environment = stack
    key = environment["SUPABASE_SERVICE_KEY"]
    answer = httpx.get(
        f"{environment['SUPABASE_URL']}/rest/v1/oauth_tokens",
        headers={"apikey": key, "Authorization": f"Bearer {key}"},
        verify=PLAIN_HTTP,
    )
    assert answer.json() == []
    folder = Path(parse_qs(urlsplit(environment["POSTGRES_URI"]).query)["host"][0])
    parts = parts_of(process, environment)
    assert len(parts) == 3
    assert all(is_running(pid) for pid in parts)

    process.send_signal(how)
    status = process.wait(timeout=STOP_SECONDS)

    assert status == (-signal.SIGKILL if how is signal.SIGKILL else 0)
    eventually(lambda: not folder.exists() and not any(map(is_running, parts)), within_seconds=STOP_SECONDS)
