"""Marked secrets go through every route, every fault and every bad input at DEBUG; nothing kept or said has one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.api.service import running_service
from tests.canary.faults import corrupt_rows, failing_kms, failing_store
from tests.canary.marked import Marked
from tests.canary.searcher import Place, Secret, find
from tests.canary.traffic import Traffic
from tests.process.home import token_vault
from tests.tokens.stores import SqliteStore, SupabaseStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stack.kms import Kms
    from tests.tokens.stores import Store

COMMANDS = (
    ("doctor",),
    ("encryption", "status", "--json"),
    ("rewrap",),
    ("keys", "retire", "1"),
    ("service-key", "list"),
)
# tokens are in the database alone, encrypted; the settings are in .env and the environment
DATABASE = "vault.db"


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that was said and written, and what must not stand in it."""

    traffic: Traffic
    marked: Marked
    others: list[Secret]
    files: list[Place]
    commands: list[Place]

    @property
    def everything(self) -> list[Secret]:
        return [*self.others, *self.marked.tokens(), Secret.of("metadata", self.marked.metadata)]


@pytest.fixture(scope="module", params=["sqlite", "supabase"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kms_server: Kms) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("canary")
    store: Store = SqliteStore(folder / DATABASE)
    supabase_key = None
    if request.param == "supabase":
        stack = request.getfixturevalue("supabase_stack")
        stack.reset()
        store, supabase_key = SupabaseStore(stack), stack.service_key
    kms_server.renew()
    marked = Marked()
    settings = {**store.environment(), **kms_server.environment(), **marked.settings()}
    with running_service(folder, settings) as service, service.client() as client:
        traffic = Traffic(service, client, marked)
        traffic.every_route(str(uuid4()))
        traffic.every_bad_input()
        traffic.send("GET", "/v1/encryption", headers={"Authorization": f"Bearer {service.keys['expired']}"})
        traffic.send("GET", "/v1/encryption", headers={"Authorization": f"Bearer {service.keys['read']}"})
        corrupt_rows(traffic, store)
        failing_store(traffic, store)
        failing_kms(traffic, kms_server)
        for key in service.keys.values():  # where no key belongs
            traffic.send("GET", f"/v1/users/{key}/tokens/{key}", params={"service_type": key})
        others = marked.others(service.keys, supabase_key)
        settings["SERVICE_KEYS_FILE"] = str(folder / "service-keys.json")
        commands = list(_commands(folder, settings))
    files = [Place(str(file.relative_to(folder)), file.read_bytes()) for file in _kept(folder)]
    kms_server.renew()
    yield Run(traffic, marked, others, files, commands)
    if isinstance(store, SupabaseStore):
        store.stack.reset()


def _kept(folder: Path) -> list[Path]:
    """Return what the service and its commands have written: the log of both streams, and whatever else appears."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if path.name != ".env" and not path.name.startswith(DATABASE)]


def _commands(folder: Path, settings: dict[str, str]) -> Iterator[Place]:
    broken = {"SUPABASE_SERVICE_KEY": "x", "TOKEN_ENCRYPTION_PREVIOUS_KEYS": "{}"}
    runs = [*((command, settings) for command in COMMANDS), (COMMANDS[0], {**settings, **broken})]
    for command, with_settings in runs:
        done = token_vault(*command, folder=folder, settings=with_settings)
        yield Place(f"{' '.join(command)}: {done.returncode}", (done.stdout + done.stderr).encode())


def test_the_secrets_have_been_everywhere(run: Run) -> None:
    assert run.traffic.statuses >= {200, 201, 204, 400, 401, 403, 404, 405, 409, 412, 413, 422, 500, 503}
    assert {"log", "service-keys.json"} <= {place.name for place in run.files}
    for secret in run.marked.tokens():
        assert find([secret], run.traffic.reveals), "a reveal's answer holds it, so the searcher would see it"


def test_no_answer_holds_a_secret_but_a_reveals_own(run: Run) -> None:
    assert find(run.everything, run.traffic.refusals) == []
    # a caller's own metadata and scopes are said back to it, whatever it has put there
    never = [secret for secret in run.others if secret.content != run.marked.misplaced.encode()]
    assert find([*never, *run.marked.tokens()], run.traffic.successes) == []
    assert find(run.others, run.traffic.reveals) == []


def test_no_log_and_no_file_holds_a_secret(run: Run) -> None:
    assert find(run.everything, run.files) == []


def test_no_command_prints_a_secret(run: Run) -> None:
    assert len(run.commands) == len(COMMANDS) + 1
    assert find(run.everything, run.commands) == []


def test_no_traceback_is_printed(run: Run) -> None:
    traceback = [Secret.of("a traceback", "Traceback (most recent call last)")]
    assert find(traceback, [*run.files, *run.commands, *run.traffic.refusals]) == []


_DEFECTS = """
import asyncio, httpx, sys
from app.config.settings import Settings
from app.main import create_app

secret, key = sys.argv[1:]
app = create_app(Settings(token_encryption_key=key, sqlite_path="vault.db", log_level="DEBUG"))

@app.get("/v1/defect/{which}")
async def defect(which: str):
    here = secret  # stands in the frame
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
            print(answer.status_code, answer.headers, answer.text)

asyncio.run(main())
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_defect_tells_nothing(tmp_path: Path, log_format: str) -> None:
    """Whatever is raised in a route that nobody has thought of, by its text, its notes, its cause or its frames."""
    marked = Marked()
    done = subprocess.run(
        [sys.executable, "-c", _DEFECTS, marked.access, marked.master_key],
        cwd=tmp_path,
        env={"LOG_FORMAT": log_format},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("500 Headers") == 4
    assert done.stdout.count("internal_error") == 4
    printed = [Place("both streams", (done.stdout + done.stderr).encode())]
    assert find([*marked.tokens(), *marked.others({}, None)], printed) == []
