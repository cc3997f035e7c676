"""A sweep that is killed at any moment leaves every row whole, old or new, and the next one finishes.

The moments are random, from a fixed seed, and lie within the sweep however fast the machine is: a sweep is killed once
it has moved so many rows.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.process.home import COMMAND_SECONDS, new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import token_path, wires
from tests.support.rewrap.command import rewrap, started, without_progress
from tests.support.rewrap.stored_rows import (
    Row,
    Rows,
    SqliteRows,
    SupabaseRows,
    access_of,
    differences_but_for_encryption,
    key_settings,
    local_encryption,
    refresh_of,
    sealed_row,
    what_a_row_holds,
)

SEED: Final = 20_261_124
OTHER: Final = {1: 2, 2: 1}
_POLL_SECONDS: Final = 0.002


def _store(request: pytest.FixtureRequest, name: str, folder: Path) -> Rows:
    return SqliteRows(folder / "vault.db") if name == "sqlite" else SupabaseRows(request.getfixturevalue("supabase"))


def _settings(rows: Rows, target: int) -> dict[str, str]:
    return rows.settings() | key_settings(target, OTHER[target])


def _kill(process: subprocess.Popen[str], *, once: int, moved: Rows, to: str) -> bool:
    """Kill a sweep once so many rows are under the scheme; return whether it was running still."""
    deadline = time.monotonic() + COMMAND_SECONDS
    while process.poll() is None and moved.count(to) < once:
        assert time.monotonic() < deadline
        time.sleep(_POLL_SECONDS)
    process.kill()
    _, errors = process.communicate()
    assert without_progress(errors) == ""
    return process.returncode == -9


def _require_whole(before: Mapping[str, Row], after: Mapping[str, Row], *, seen: Mapping[str, Row]) -> None:
    """Look at each row that is not as it was when all were last seen."""
    assert after.keys() == before.keys()
    reader = local_encryption(2)
    for row_id, row in after.items():
        if row == seen[row_id]:
            continue
        scheme = str(row["encryption_scheme"])
        assert {row["access_token"].partition(":")[0], row["refresh_token"].partition(":")[0]} == {
            scheme.removeprefix("local:")
        }, "both secrets are under the key that the row names"
        assert what_a_row_holds(reader, row) == (access_of(row_id), refresh_of(row_id))
        assert list(differences_but_for_encryption(before[row_id], row)) == []


@pytest.mark.parametrize(("store", "kills", "count"), [("sqlite", 50, 1_000), ("supabase", 8, 1_000)])
def test_after_each_kill_every_row_is_whole_and_the_next_sweep_finishes(
    request: pytest.FixtureRequest, tmp_path: Path, store: str, kills: int, count: int
) -> None:
    chance = random.Random(SEED)  # noqa: S311  a fixed seed, so that a failure comes again
    rows = _store(request, store, tmp_path)
    rows.insert([sealed_row(local_encryption(1)) for _ in range(count)])
    before = seen = rows.rows()
    killed = halfway = 0
    for attempt in range(2 * kills):
        target = OTHER[1 + attempt % 2]
        scheme, there = f"local:v{target}", rows.count(f"local:v{target}")
        several = ("--processes", "2") if attempt % 12 == 1 else ()
        sweeps = [
            started(*several, folder=tmp_path, settings=_settings(rows, target)) for _ in range(1 + (attempt % 3 == 0))
        ]
        if chance.random() < 0.1:  # while it starts
            time.sleep(chance.uniform(0, 0.5))
        for sweep in sweeps:
            moments = there + int((count - there) * chance.uniform(0, 0.9))
            time.sleep(chance.uniform(0, 0.01))
            killed += _kill(sweep, once=moments, moved=rows, to=scheme)
        rows.settle()
        after = rows.rows()
        _require_whole(before, after, seen=seen)
        seen = after
        halfway += 0 < rows.count(scheme) < count
        if killed >= kills:
            break
    assert killed >= kills
    assert halfway >= kills // 4, "many of them in the midst of it"
    due = rows.count("local:v1")
    done = rewrap(folder=tmp_path, settings=_settings(rows, 2))
    assert done.exit_code == 0, done
    assert done.counts == {"due": due, "rewrapped": due, "overtaken": 0, "unreadable": 0, "in doubt": 0, "remaining": 0}
    assert rows.count("local:v2") == count
    _require_whole(before, rows.rows(), seen=seen)


class _Client:
    """The one writer of each token. It reveals, rotates, deletes and stores, and knows what must be there."""

    def __init__(self, server: Server, rows: Mapping[str, Row]) -> None:
        self.holds: dict[str, str | None] = {row["user_id"]: access_of(row_id) for row_id, row in rows.items()}
        self.wrong: list[object] = []
        self.done = 0
        self._server = server
        self._chance = random.Random(SEED)  # noqa: S311  a fixed seed, so that a failure comes again
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call_until_over, name="client")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _call_until_over(self) -> None:
        users = list(self.holds)
        with wires(self._server, 4) as opened:
            while not self._over.is_set() and not self.wrong:
                user_id = self._chance.choice(users)
                wire = self._chance.choice(opened)
                path, held = token_path(user_id), self.holds[user_id]
                action = self._chance.choices(["reveal", "rotate", "store", "delete"], [6, 3, 1, 1])[0]
                secret = f"written by call {self.done} for {user_id}"
                if action == "reveal":
                    answer = wire.call("GET", path)
                    fine = answer.body.get("access_token") == held if held else answer.status == 404
                elif action == "delete":
                    answer = wire.call("DELETE", path)
                    fine, self.holds[user_id] = answer.status == (204 if held else 404), None
                elif action == "store":
                    answer = wire.call("PUT", path, {"access_token": secret})
                    fine, self.holds[user_id] = answer.status == (200 if held else 201), secret
                else:
                    answer = wire.call("POST", f"{path}/rotate", {"access_token": secret})
                    fine = answer.status == (200 if held else 404)
                    self.holds[user_id] = secret if held else None
                self.done += 1
                if not fine:
                    self.wrong.append((action, held, answer))


@pytest.mark.parametrize("store", ["sqlite", "supabase"])
def test_no_acknowledged_write_is_lost_to_sweeps_that_are_killed_beside_four_replicas(
    request: pytest.FixtureRequest, tmp_path: Path, serve: Serve, store: str
) -> None:
    chance = random.Random(SEED)  # noqa: S311  a fixed seed, so that a failure comes again
    rows = _store(request, store, tmp_path)
    settings = _settings(rows, 2)
    rows.insert([sealed_row(local_encryption(1)) for _ in range(1_200)])
    home = new_home(tmp_path, **settings, REWRAP_ON_READ="true")
    with serve(home, workers=4) as server:
        client = _Client(server, rows.rows())
        try:
            killed = 0
            for _ in range(5):
                sweeps = [started("--rate", "400", folder=tmp_path, settings=settings) for _ in range(2)]
                for sweep in sweeps:
                    once = rows.count("local:v2") + chance.randrange(10, 100)
                    killed += _kill(sweep, once=once, moved=rows, to="local:v2")
            last = rewrap(folder=tmp_path, settings=settings)
        finally:
            client.stop()
        assert client.wrong == []
        assert client.done > 100
        assert killed >= 5
        assert '"service":"rewrap-on-read"' in server.output
        assert (last.exit_code, last.counts["remaining"], last.counts["unreadable"]) == (0, 0, 0), last
    reader, found = local_encryption(2), rows.rows().values()
    held = {row["user_id"]: what_a_row_holds(reader, row)[0] for row in found}
    assert held == {user_id: secret for user_id, secret in client.holds.items() if secret is not None}
    assert {row["encryption_scheme"] for row in found} == {"local:v2"}
    assert len(held) < 1_200, "some are deleted, and stay so"
