"""A sweep that is killed at any moment leaves every row whole, old or new, and the next one finishes.

A sweep is killed once it has rewrapped a random number of rows, from a fixed seed, so that the moment lies within the
sweep however slow the machine is.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.process.home import COMMAND_SECONDS, new_home
from tests.support.process.prepared import PreparedCommand
from tests.support.process.server import Serve, Server
from tests.support.process.wire import token_path, wires
from tests.support.rewrap.command import prepared, rewrap, without_progress
from tests.support.rewrap.stored_rows import (
    PostgresRows,
    Row,
    Rows,
    SqliteRows,
    SupabaseRows,
    access_of,
    differences_but_for_encryption,
    key_settings,
    local_encryption,
    refresh_of,
    rows_under_first,
    what_a_row_holds,
)
from tests.support.sizes import SOAK, size

SEED: Final = 20_261_124
OTHER: Final = {1: 2, 2: 1}
_POLL_SECONDS: Final = 0.002
_STORES: Final = ("sqlite", "supabase", *(("postgres",) if SOAK else ()))


def _store(request: pytest.FixtureRequest, name: str, folder: Path) -> Rows:
    if name == "sqlite":
        return SqliteRows(folder / "vault.db")
    kind = PostgresRows if name == "postgres" else SupabaseRows
    return kind(request.getfixturevalue("supabase"))


def _settings(rows: Rows, target: int) -> dict[str, str]:
    return rows.settings() | key_settings(target, OTHER[target])


def _kill(sweep: PreparedCommand, *, once: int, rewrapped: Rows, under: str) -> bool:
    """Kill a sweep once so many rows are under the scheme; return whether it was still running."""
    deadline = time.monotonic() + COMMAND_SECONDS
    while sweep.is_running and rewrapped.count(under) < once:
        assert time.monotonic() < deadline
        time.sleep(_POLL_SECONDS)
    killed = sweep.kill()
    assert without_progress(killed.stderr) == ""
    return killed.returncode == -9


def _require_whole(before: Mapping[str, Row], after: Mapping[str, Row], *, seen: Mapping[str, Row]) -> None:
    """Check each row that differs from `seen`, the last look at all rows."""
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


@pytest.mark.parametrize("store", _STORES)
def test_after_each_kill_every_row_is_whole_and_the_next_sweep_finishes(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    chance = random.Random(SEED)  # noqa: S311  a fixed seed makes a failure repeatable
    kills, count = size(5, 50) if store == "sqlite" else size(3, 20), 600
    rows = _store(request, store, tmp_path)
    rows.insert(rows_under_first(count))
    before = seen = rows.rows()
    killed = halfway = 0
    for round_ in range(6 * kills):
        target = OTHER[1 + round_ % 2]
        scheme, already = f"local:v{target}", rows.count(f"local:v{target}")
        several = (["--shard", "1/2"], ["--shard", "2/2"]) if round_ % 3 == 0 else ([],)
        pace = ["--rate", "300"] if round_ % 2 else []  # a sweep at full speed is often over before it is killed
        sweeps = [prepared(*shard, *pace, folder=tmp_path, settings=_settings(rows, target)) for shard in several]
        if chance.random() < 0.1:  # during its start
            time.sleep(chance.uniform(0, 0.5))
        for sweep in sweeps:
            once = already + int((count - already) * chance.uniform(0, 0.9))
            killed += _kill(sweep, once=once, rewrapped=rows, under=scheme)
        rows.settle()
        after = rows.rows()
        _require_whole(before, after, seen=seen)
        seen = after
        halfway += 0 < rows.count(scheme) < count
        if killed >= kills and halfway >= max(1, kills // 4):
            break
    assert killed >= kills
    assert halfway >= max(1, kills // 4), "many kills are in the middle of a sweep"
    due = rows.count("local:v1")
    done = rewrap(folder=tmp_path, settings=_settings(rows, 2))
    assert done.exit_code == 0, done
    assert done.counts == {"due": due, "rewrapped": due, "overtaken": 0, "unreadable": 0, "in doubt": 0, "remaining": 0}
    assert rows.count("local:v2") == count
    _require_whole(before, rows.rows(), seen=seen)


class _Client:
    """The only writer of each token: reveals, rotates, deletes and stores it, and knows what it must hold."""

    def __init__(self, server: Server, rows: Mapping[str, Row]) -> None:
        self.holds: dict[str, str | None] = {row["user_id"]: access_of(row_id) for row_id, row in rows.items()}
        self.wrong: list[object] = []
        self.calls = 0
        self._server = server
        self._chance = random.Random(SEED)  # noqa: S311  a fixed seed makes a failure repeatable
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
                secret = f"written by call {self.calls} for {user_id}"
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
                self.calls += 1
                if not fine:
                    self.wrong.append((action, held, answer))


@pytest.mark.parametrize("store", _STORES)
def test_killed_sweeps_beside_replicas_lose_no_acknowledged_write(
    request: pytest.FixtureRequest, tmp_path: Path, serve: Serve, store: str
) -> None:
    chance = random.Random(SEED)  # noqa: S311  a fixed seed makes a failure repeatable
    rows, count, workers = _store(request, store, tmp_path), size(600, 1_200), size(2, 4)
    settings = _settings(rows, 2)
    rows.insert(rows_under_first(count))
    home = new_home(tmp_path, **settings, REWRAP_ON_READ="true")
    with serve(home, workers=workers) as server:
        client = _Client(server, rows.rows())
        try:
            killed = 0
            for _ in range(size(2, 5)):
                sweeps = [prepared("--rate", "200", folder=tmp_path, settings=settings) for _ in range(2)]
                for sweep in sweeps:
                    once = rows.count("local:v2") + chance.randrange(5, 50)
                    killed += _kill(sweep, once=once, rewrapped=rows, under="local:v2")
            last = rewrap(folder=tmp_path, settings=settings)
        finally:
            client.stop()
        assert client.wrong == []
        assert client.calls > 30
        assert killed >= 3
        assert '"service":"rewrap-on-read"' in server.output
        assert (last.exit_code, last.counts["remaining"], last.counts["unreadable"]) == (0, 0, 0), last
    reader, found = local_encryption(2), rows.rows().values()
    held = {row["user_id"]: what_a_row_holds(reader, row)[0] for row in found}
    assert held == {user_id: secret for user_id, secret in client.holds.items() if secret is not None}
    assert {row["encryption_scheme"] for row in found} == {"local:v2"}
    assert len(held) < count, "some are deleted, and stay so"
