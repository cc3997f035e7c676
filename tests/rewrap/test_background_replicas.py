"""Replicas that sweep in the background at once rewrap each token once, and stop cleanly in the middle."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.support.process.home import new_home
from tests.support.process.server import Ended, Serve, Server
from tests.support.rewrap.stored_rows import (
    Row,
    Rows,
    SupabaseRows,
    access_of,
    differences_but_for_encryption,
    key_settings,
    local_encryption,
    refresh_of,
    rows_under_first,
    what_a_row_holds,
)
from tests.support.stack.gateway_faults import Request
from tests.support.stack.supabase import SupabaseStack
from tests.support.waiting import eventually

REPLICAS = 2
ROWS = 900
WRITES_BEFORE_THE_STOP = 2


@pytest.fixture
def rows(supabase: SupabaseStack) -> Rows:
    """A store full of tokens under the old key."""
    store = SupabaseRows(supabase)
    store.insert(rows_under_first(ROWS))
    return store


def _replicas(stack: ExitStack, serve: Serve, rows: Rows, folder: Path) -> list[Server]:
    settings = rows.settings() | key_settings(2, 1) | {"REWRAP_INTERVAL_SECONDS": "0.5", "REWRAP_ON_READ": "false"}
    homes = []
    for number in range(REPLICAS):
        home_folder = folder / f"replica-{number}"
        home_folder.mkdir(exist_ok=True)
        homes.append(new_home(home_folder, **settings))
    return [stack.enter_context(serve(home)) for home in homes]


def _rewrapped_by(output: str) -> list[str]:
    """Return the users whose tokens this replica logged as rewrapped."""
    lines = [json.loads(line) for line in output.splitlines() if '"rewrap"' in line]
    assert {line["outcome"] for line in lines} <= {"success"}
    return [line["user_id"] for line in lines]


def _require_whole(before: dict[str, Row], after: dict[str, Row]) -> None:
    assert after.keys() == before.keys()
    for row_id, row in after.items():
        assert what_a_row_holds(local_encryption(2), row) == (access_of(row_id), refresh_of(row_id))
        assert list(differences_but_for_encryption(before[row_id], row)) == []


def test_two_replicas_stop_in_the_middle_and_finish_the_next_time(
    rows: Rows, supabase: SupabaseStack, tmp_path: Path, serve: Serve
) -> None:
    before, writes = rows.rows(), count(1)

    def is_late_write(request: Request) -> bool:
        return "replace_ciphertexts" in request.target and next(writes) > WRITES_BEFORE_THE_STOP

    supabase.faults.answer(503, when=is_late_write)  # no sweep can finish before it is stopped
    with ExitStack() as stack:
        replicas = _replicas(stack, serve, rows, tmp_path)
        eventually(lambda: rows.count("local:v2") > 0, within_seconds=120)
        for replica in replicas:
            replica.terminate()
        first = [replica.ended() for replica in replicas]
    supabase.faults.clear()
    rewrapped = rows.count("local:v2")
    assert 0 < rewrapped < ROWS, "they were stopped in the middle"
    _require_clean_ends(first)
    assert any('"stopped":"the service is shutting down"' in one.output for one in first)
    _require_whole(before, rows.rows())
    assert len(_all_rewrapped(first)) == rewrapped, "an audit event for each rewrapped row, and no other"

    with ExitStack() as stack:
        replicas = _replicas(stack, serve, rows, tmp_path)
        eventually(lambda: rows.count("local:v2") == ROWS, within_seconds=120)
        second = [replica.stop() for replica in replicas]
    _require_clean_ends(second)
    _require_whole(before, rows.rows())
    by_user = Counter(_all_rewrapped([*first, *second]))
    assert by_user.keys() == {row["user_id"] for row in before.values()}
    assert set(by_user.values()) == {1}, "each token is rewrapped once"


def _all_rewrapped(ended: list[Ended]) -> list[str]:
    return [user_id for one in ended for user_id in _rewrapped_by(one.output)]


def _require_clean_ends(ended: list[Ended]) -> None:
    assert {one.exit_code for one in ended} == {0}
    for one in ended:
        assert '"event":"stopped"' in one.output
        assert "Traceback" not in one.output
        assert "sweep_failed" not in one.output
