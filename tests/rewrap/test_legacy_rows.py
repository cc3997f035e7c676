"""Rows in PulsePlan's formats: left to PulsePlan's service, and never bound to a place where a copy may stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.errors import IntegrityError
from app.rewrap.background import BackgroundSweep
from app.rewrap.on_read import RewrapOnRead
from app.rewrap.report import SweepReport
from app.rewrap.sweep import SweepPlan
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import Caller, TokenId, TokenInput
from app.tokens.repository import MAXIMUM_LISTED, TokenRepository
from app.tokens.vault import TokenVault
from tests.support.process.home import new_home
from tests.support.process.server import Serve
from tests.support.process.wire import token_path, wires
from tests.support.rewrap.command import rewrap
from tests.support.rewrap.stored_rows import (
    Row,
    Rows,
    SqliteRows,
    SupabaseRows,
    access_of,
    half_legacy_row,
    key_settings,
    local_encryption,
    row_without_scheme,
    sealed_row,
    what_a_row_holds,
)
from tests.support.rewrap.sweeps import Observed, opened, sweep
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import raw_row
from tests.support.waiting import eventually, eventually_async

CALLER: Final = Caller("tests")
SECOND: Final = key_settings(2, 1)


def _legacy_row(user_id: str, provider: str, secret: str | None = None, **columns: str) -> Row:
    """Return a row as PulsePlan wrote it."""
    row = raw_row(user_id=user_id, provider=provider, encryption_scheme=None)
    return row | {"access_token": legacy_ciphertext(secret or access_of(row["id"]), user_id)} | columns


def _bound_rows() -> list[Row]:
    """Return rows that are due and bound: under the first key, and the same without its scheme."""
    return [sealed_row(local_encryption(1)), row_without_scheme()]


def _token_id(row: Row) -> TokenId:
    return TokenId(row["user_id"], row["provider"], row["service_type"])


def _derive_keys(*rows: Row) -> None:
    """Derive every key now, so that no deadline of an operation passes meanwhile on a busy machine."""
    local_encryption(2).self_test()
    for row in rows:
        what_a_row_holds(local_encryption(2), row)


def _vault(tokens: TokenRepository, observed: Observed, on_read: RewrapOnRead | None = None) -> TokenVault:
    return TokenVault(
        tokens=tokens,
        cipher=TokenCipher(encryption=local_encryption(2)),
        events=TokenEvents(audit=NoAuditTrail(), observers=[observed]),
        on_reveal=None if on_read is None else on_read.offer,
    )


def _on_read(tokens: TokenRepository, observed: Observed, *, rewrap_legacy: bool = False) -> RewrapOnRead:
    return RewrapOnRead(
        tokens=tokens,
        cipher=TokenCipher(encryption=local_encryption(2)),
        events=TokenEvents(audit=NoAuditTrail(), observers=[observed]),
        delay_seconds=0,
        rewrap_legacy=rewrap_legacy,
    )


# --- reads and background sweeps


async def test_a_read_leaves_a_legacy_row_to_the_old_service(rows: Rows) -> None:
    legacy, half, bound = _legacy_row(str(uuid4()), "canvas"), half_legacy_row(), sealed_row(local_encryption(1))
    observed = Observed()
    rows.insert([legacy, half, bound])
    _derive_keys(legacy, half, bound)
    before = rows.rows()
    async with opened(rows) as tokens:
        on_read = _on_read(tokens, observed)
        vault = _vault(tokens, Observed(), on_read)
        for row in (legacy, half, bound):
            revealed = await vault.reveal(_token_id(row), caller=CALLER)
            assert revealed.access_token.get_secret_value() == access_of(row["id"])
        await eventually_async(lambda: rows.count("local:v2") > 0)  # the queue keeps its order
        await on_read.close()
    after = rows.rows()
    assert after[bound["id"]]["encryption_scheme"] == "local:v2"
    assert [after[row["id"]] for row in (legacy, half)] == [before[row["id"]] for row in (legacy, half)]
    assert [event.token_id for event in observed.events] == [_token_id(bound)]


async def test_a_background_sweep_leaves_legacy_rows_and_ends(rows: Rows) -> None:
    legacy, bound = [_legacy_row(str(uuid4()), "canvas") for _ in range(3)], _bound_rows()
    rows.insert([*legacy, *bound])
    before = rows.rows()
    ended: list[tuple[int | None, int | None]] = []

    def note(report: SweepReport) -> None:
        if report.seconds:
            ended.append((report.due, report.remaining))

    async with opened(rows) as tokens:
        sweeps = BackgroundSweep(
            tokens=tokens,
            cipher=TokenCipher(encryption=local_encryption(2)),
            events=TokenEvents(audit=NoAuditTrail()),
            interval_seconds=0.01,
            observer=Observed(on_progress=note),
        )
        sweeps.start()
        await eventually_async(lambda: len(ended) >= 2)
        await sweeps.close()
    assert ended[:2] == [(2, 0), (0, 0)], "rows that it leaves are not due for it"
    after = rows.rows()
    assert {after[row["id"]]["encryption_scheme"] for row in bound} == {"local:v2"}
    assert [after[row["id"]] for row in legacy] == [before[row["id"]] for row in legacy]


@pytest.mark.parametrize("setting", ["REWRAP_ON_READ", "REWRAP_INTERVAL_SECONDS"])
def test_rewrap_legacy_lets_a_service_rewrap_them(
    sqlite: SqliteRows, tmp_path: Path, serve: Serve, setting: str
) -> None:
    legacy = _legacy_row(str(uuid4()), "canvas")
    sqlite.insert([legacy])
    settings = sqlite.settings() | SECOND | {"REWRAP_ON_READ": "false", "REWRAP_LEGACY": "true"}
    settings |= {"REWRAP_ON_READ": "true"} if setting == "REWRAP_ON_READ" else {"REWRAP_INTERVAL_SECONDS": "0.2"}
    with serve(new_home(tmp_path, **settings)) as server, wires(server, 1) as [wire]:
        if setting == "REWRAP_ON_READ":
            path = token_path(legacy["user_id"])
            eventually(lambda: wire.call("GET", path).status == 200)  # 503 while a busy machine derives the key
        eventually(lambda: sqlite.count("local:v2") == 1, within_seconds=120)
    after = sqlite.rows()[legacy["id"]]
    assert what_a_row_holds(local_encryption(2), after) == (access_of(legacy["id"]), "")


@pytest.mark.parametrize("rewrap_legacy", [False, True])
async def test_a_legacy_ciphertext_under_a_claim_is_never_bound(
    supabase: SupabaseStack, *, rewrap_legacy: bool
) -> None:
    """Also while the store cannot count the rows, and a sweep walks every scheme that a row names."""
    planted = [
        _legacy_row(str(uuid4()), "google", encryption_scheme=claim)
        for claim in ("pulseplan-local:v1", "local:v1", "nonsense")
    ]
    half = sealed_row(local_encryption(1))
    half["refresh_token"] = legacy_ciphertext("google's refresh token", half["user_id"])
    rows, plan = SupabaseRows(supabase), SweepPlan(rewrap_legacy=rewrap_legacy)
    rows.insert([*planted, half])
    before = rows.rows()
    async with opened(rows) as tokens:
        counted = await sweep(tokens, local_encryption(2), plan=plan).run()
        supabase.faults.answer(504, when=lambda request: "token_vault_census" in request.target)
        uncounted = await sweep(tokens, local_encryption(2), plan=plan).run()
    for report in (counted, uncounted):
        assert (report.unreadable["integrity"], report.rewrapped, report.stopped) == (2, 0, None)
    assert counted.unreadable["store_misconfigured"] == 2, "the schemes that the vault does not write"
    assert (counted.due, uncounted.due) == (4, None)
    assert rows.rows() == before


# --- copies


def _copies() -> tuple[list[Row], list[Row]]:
    """Return rows whose ciphertext stands in two places or opens for no user of theirs, and rows without such ones.

    The last row has a Canvas token that its user made by hand, in both columns, as PulsePlan stored it.
    """
    one, two, three, four = (str(uuid4()) for _ in range(4))
    canvas = _legacy_row(one, "canvas")
    respelt = _legacy_row(one, "google", access_token=canvas["access_token"].removeprefix("v1:"))
    google = _legacy_row(two, "google")
    google["refresh_token"] = legacy_ciphertext("google's refresh token", two)
    other_column = _legacy_row(two, "notion", access_token=google["refresh_token"])
    under_another_scheme = _legacy_row(three, "canvas")
    bound = sealed_row(local_encryption(2)) | {"user_id": three, "provider": "google"}
    bound |= {"access_token": under_another_scheme["access_token"], "refresh_token": ""}
    other_user = _legacy_row(four, "canvas", access_token=canvas["access_token"])
    both_columns = _legacy_row(four, "google")
    both_columns["refresh_token"] = both_columns["access_token"].removeprefix("v1:")
    manual = _legacy_row(two, "canvas")
    manual["refresh_token"] = manual["access_token"]
    left = [canvas, respelt, google, other_column, under_another_scheme, other_user, both_columns]
    return [*left, bound], [_legacy_row(one, "notion"), manual]


def test_copies_of_a_legacy_ciphertext_are_reported_and_left(rows: Rows, tmp_path: Path) -> None:
    left, whole = _copies()
    rows.insert([*left, *whole])
    before = rows.rows()
    reported = {row["id"]: "integrity" for row in left if row["encryption_scheme"] is None}
    for arguments in (["--dry-run"], [], []):
        done = rewrap(*arguments, folder=tmp_path, settings=rows.settings() | SECOND)
        assert (done.exit_code, done.unreadable) == (1, reported), done
        assert done.stdout.count("another row of this user holds the same PulsePlan ciphertext") == 5
        assert done.stdout.count("the row's other column holds the same PulsePlan ciphertext") == 1
    after = rows.rows()
    assert [after[row["id"]] for row in left] == [before[row["id"]] for row in left]
    assert {after[row["id"]]["encryption_scheme"] for row in whole} == {"local:v2"}
    assert [what_a_row_holds(local_encryption(2), after[row["id"]])[0] for row in whole] == [
        access_of(row["id"]) for row in whole
    ]


async def test_a_copy_is_not_rewrapped_on_request_or_read(rows: Rows) -> None:
    user, observed = str(uuid4()), Observed()
    canvas = _legacy_row(user, "canvas")
    copy = _legacy_row(user, "google", access_token=canvas["access_token"])
    rows.insert([canvas, copy])
    _derive_keys(canvas, copy)
    before = rows.rows()
    async with opened(rows) as tokens:
        on_read = _on_read(tokens, observed, rewrap_legacy=True)
        vault = _vault(tokens, Observed(), on_read)
        for row in (canvas, copy):
            with pytest.raises(IntegrityError, match="another row of this user"):
                await vault.rewrap(_token_id(row), caller=CALLER)
            await vault.reveal(_token_id(row), caller=CALLER)
        await eventually_async(lambda: len(observed.events) == 2)
        await on_read.close()
    assert [event.outcome for event in observed.events] == ["integrity", "integrity"]
    assert rows.rows() == before


async def test_no_legacy_row_is_bound_if_its_user_has_too_many_rows(rows: Rows) -> None:
    """A copy could be among the rows that are not read."""
    legacy = _legacy_row(str(uuid4()), "canvas")
    bound = sealed_row(local_encryption(2)) | {"user_id": legacy["user_id"], "provider": "google"}
    others = [bound | {"id": str(uuid4()), "service_type": f"s{number}"} for number in range(MAXIMUM_LISTED)]
    rows.insert([legacy, *others])
    _derive_keys(legacy)
    async with opened(rows) as tokens:
        vault = _vault(tokens, Observed())
        with pytest.raises(IntegrityError, match="more than 500 tokens"):
            await vault.rewrap(_token_id(legacy), caller=CALLER)
        assert legacy.items() <= rows.rows()[legacy["id"]].items()
        await vault.delete(_token_id(others[0]), caller=CALLER)
        await vault.rewrap(_token_id(legacy), caller=CALLER)
    assert rows.rows()[legacy["id"]]["encryption_scheme"] == "local:v2"


async def test_a_rotation_does_not_keep_a_copied_refresh_token(rows: Rows) -> None:
    """It would encrypt the refresh token of one provider again as that of another."""
    user = str(uuid4())
    google = _legacy_row(user, "google", refresh_token=legacy_ciphertext("google's refresh token", user))
    canvas = _legacy_row(user, "canvas", refresh_token=google["refresh_token"].removeprefix("v1:"))
    own = _legacy_row(user, "notion", refresh_token=legacy_ciphertext("notion's refresh token", user))
    apple = _legacy_row(user, "apple")
    apple["refresh_token"] = apple["access_token"]
    rows.insert([google, canvas, own, apple])
    _derive_keys(google, canvas, own, apple)
    before = rows.rows()
    newer = TokenInput(access_token=SecretStr("newer"))
    async with opened(rows) as tokens:
        vault = _vault(tokens, Observed())
        with pytest.raises(IntegrityError, match="another row of this user"):
            await vault.rotate(_token_id(canvas), newer, caller=CALLER)
        with pytest.raises(IntegrityError, match="other column"):
            await vault.rotate(_token_id(apple), newer, caller=CALLER)
        assert rows.rows() == before
        await vault.rotate(_token_id(canvas), replace(newer, refresh_token=SecretStr("its own")), caller=CALLER)
        await vault.rotate(_token_id(own), newer, caller=CALLER)
    after = rows.rows()
    assert what_a_row_holds(local_encryption(2), after[canvas["id"]]) == ("newer", "its own")
    assert what_a_row_holds(local_encryption(2), after[own["id"]]) == ("newer", "notion's refresh token")
    assert after[google["id"]] == before[google["id"]]
