"""Unreadable and refused rows stop nothing, and hide neither other rows nor a store that fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.config.settings import Settings
from app.errors import KeyDenied, StoreMisconfigured
from app.observability.in_memory_counters import InMemoryCounters
from app.rewrap.background import BackgroundSweep
from app.rewrap.outcomes import MAXIMUM_REPORTED_ROWS, ReportedRows
from app.rewrap.report import SweepReport
from app.rewrap.sweep import SweepPlan
from app.security.context import TokenContext
from app.security.encryption_service import EncryptionService
from app.security.formats import MAXIMUM_CIPHERTEXT_CHARACTERS
from app.security.local_strategy import LocalStrategy
from app.security.strategy import EncryptionStrategy, Sealed, SealingKey
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from tests.support.rewrap.command import rewrap
from tests.support.rewrap.stored_rows import (
    Row,
    SqliteRows,
    SupabaseRows,
    broken_rows,
    encryption,
    key_settings,
    local_encryption,
    rows_under_first,
    sealed_row,
)
from tests.support.rewrap.sweeps import Observed, all_rewrapped, bound_row, counts, kms_settings, sweep
from tests.support.stack.kms import Kms
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.pausing import pausing
from tests.support.stores.stores import SqliteStore, Store, SupabaseStore, raw_row
from tests.support.stores.unreadable import damage, damages_of
from tests.support.waiting import eventually_async

SECOND = key_settings(2, 1)


# --- rows that the store refuses

_REFUSED_IDS = "ffffffff-ffff-4fff-bfff-fffffffffff"


@pytest.fixture
def refusing(supabase: SupabaseStack) -> Iterator[SupabaseStack]:
    """A project whose own trigger refuses to change some rows."""
    supabase.sql(
        "create function public.refuse() returns trigger language plpgsql as $$ begin"
        f" if starts_with(new.id::text, '{_REFUSED_IDS}') then raise exception using errcode = '23514', message = 'no';"
        " end if; return new; end $$"
    )
    supabase.sql(
        "create trigger refuse before update on public.oauth_tokens for each row execute function public.refuse()"
    )
    yield supabase
    supabase.sql("drop trigger refuse on public.oauth_tokens")
    supabase.sql("drop function public.refuse()")


def _refused(count: int) -> list[Row]:
    return [row | {"id": f"{_REFUSED_IDS}{n}"} for n, row in enumerate(rows_under_first(count))]


@pytest.mark.parametrize(("refused", "others"), [(1, 0), (2, 0), (3, 30)])
async def test_rows_that_the_store_refuses_are_reported_one_by_one(
    refusing: SupabaseStack, refused: int, others: int
) -> None:
    rows, bad = SupabaseRows(refusing), _refused(refused)
    rows.insert([*bad, *rows_under_first(others)])
    observed = Observed()
    async with SupabaseStore(refusing).open() as tokens:
        report = await sweep(tokens, local_encryption(2), observed=observed).run()
    left = {"due": refused + others, "unreadable": refused, "remaining": refused}
    assert counts(report) == {**all_rewrapped(others), **left}
    assert (report.stopped, dict(report.unreadable)) == (None, {"store_misconfigured": refused})
    assert sorted(observed.unreadable_ids) == sorted(row["id"] for row in bad)


def test_a_table_of_refused_rows_ends_the_command_with_1(refusing: SupabaseStack, tmp_path: Path) -> None:
    rows, bad = SupabaseRows(refusing), _refused(2)
    rows.insert(bad)
    done = rewrap(folder=tmp_path, settings=rows.settings() | SECOND)
    assert (done.exit_code, done.unreadable) == (1, {row["id"]: "store_misconfigured" for row in bad})


async def test_a_store_that_refuses_every_rewrap_ends_the_sweep_without_blame(supabase: SupabaseStack) -> None:
    SupabaseRows(supabase).insert(rows_under_first(3))
    observed = Observed()
    supabase.sql("revoke update on public.oauth_tokens from token_vault")
    try:
        async with SupabaseStore(supabase).open() as tokens:
            with pytest.raises(StoreMisconfigured):
                await sweep(tokens, local_encryption(2), observed=observed).run()
    finally:
        supabase.sql("grant update on public.oauth_tokens to token_vault")
    assert observed.unreadable_ids == []


# --- unreadable rows


async def test_rows_that_do_not_decode_stop_no_sweep(store: Store) -> None:
    bad: set[str] = set()
    named: set[str] = set()
    observed = Observed()
    async with store.open() as tokens:
        for column, value in damages_of(store).values():
            row = sealed_row(local_encryption(1))
            store.insert_raw(**row)
            damage(store, row["user_id"], "canvas", column, value)
            bad.add(row["id"])
            if column != "encryption_scheme":  # rows with a scheme that the vault does not write are counted, not read
                named.add(row["id"])
        for row in rows_under_first(3):
            store.insert_raw(**row)
        report = await sweep(tokens, local_encryption(2), observed=observed).run()
    left = {"due": 3 + len(bad), "unreadable": len(bad), "remaining": len(bad)}
    assert counts(report) == {**all_rewrapped(3), **left}
    assert set(observed.unreadable_ids) == named


@pytest.mark.parametrize("pages", [1, 2])
async def test_unreadable_rows_stay_counted_if_a_later_pass_is_stopped(tmp_path: Path, pages: int) -> None:
    """A row that is added before the second count makes a second pass, which is stopped after so many pages."""
    rows = SqliteRows(tmp_path / "vault.db")
    rows.insert([*broken_rows().values(), *rows_under_first(10)])
    observed, counting, reading = Observed(), Counter[str](), Counter[str]()

    async def at_census() -> None:
        counting["pauses"] += 1
        if counting["pauses"] == 3:  # before the second count
            rows.insert(rows_under_first(1))

    async def at_page() -> None:
        if counting["pauses"] >= 4:
            reading["second pass"] += 1
        if reading["second pass"] == 2 * pages:
            running.stop("the test stopped it")

    async with SqliteStore(rows.path).open() as tokens:
        slow = pausing(pausing(tokens, at_census, only="census"), at_page, only="page")
        running = sweep(slow, local_encryption(2), observed=observed)
        report = await running.run()
    assert report.stopped == "the test stopped it"
    assert report.unreadable.total() == 4
    assert dict(report.unreadable) == {"integrity": 2, "key_denied": 1, "malformed_ciphertext": 1}
    assert len(observed.unreadable_ids) == 4


async def test_background_sweeps_count_unreadable_rows_and_audit_them_once(tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "vault.db")
    broken = broken_rows()
    rows.insert(broken.values())
    observed = Observed()
    async with SqliteStore(rows.path).open() as tokens:
        background = BackgroundSweep(
            tokens=tokens,
            cipher=TokenCipher(encryption=local_encryption(2)),
            events=TokenEvents(audit=NoAuditTrail(), observers=[observed]),
            interval_seconds=0.01,
            observer=observed,
        )
        background.start()
        await eventually_async(lambda: len(observed.unreadable_ids) >= 12)
        recorded = [event.outcome for event in observed.events]
        # a different error of the same row is reported again
        rows.replace([broken["flipped"] | {"access_token": "nonsense"}])
        await eventually_async(lambda: len(observed.events) > 4)
        await background.close()
    assert sorted(recorded) == ["integrity", "integrity", "key_denied", "malformed_ciphertext"]
    assert [event.outcome for event in observed.events[4:]] == ["malformed_ciphertext"]


def test_reported_rows_are_bounded_and_forgotten_when_mended() -> None:
    reported = ReportedRows()
    assert [reported.add("row", "integrity") for _ in range(2)] == [True, False]
    reported.forget("row")
    assert reported.add("row", "integrity")
    for number in range(2 * MAXIMUM_REPORTED_ROWS):
        reported.add(str(number), "integrity")
    assert len(reported) == MAXIMUM_REPORTED_ROWS
    assert not reported.add("row", "integrity")


# --- rows that the primary encrypts wrongly

Seal = Callable[[str, TokenContext], Sealed]


class _WrongForSome:
    """A real strategy whose ciphertexts for some users are wrong."""

    def __init__(self, strategy: EncryptionStrategy, wrong: Mapping[str, Seal]) -> None:
        self._strategy = strategy
        self._wrong = wrong
        self.family = strategy.family

    @property
    def scheme(self) -> str | None:
        return self._strategy.scheme

    def open(self, ciphertext: str, context: TokenContext, *, claimed: str | None = None, wait: bool = True) -> str:
        return self._strategy.open(ciphertext, context, claimed=claimed, wait=wait)

    def seal(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        wrong = self._wrong.get(context.user_id)
        return self._strategy.seal(plaintext, context, wait=wait) if wrong is None else wrong(plaintext, context)

    def reserve(self, context: TokenContext, *, wait: bool = True) -> SealingKey:
        return self._strategy.reserve(context, wait=wait)


def _strategy() -> LocalStrategy:
    values: dict[str, Any] = {name.lower(): value for name, value in SECOND.items()}
    keyring = Settings(_env_file=None, **values).keyring()  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
    assert keyring is not None
    return LocalStrategy(keyring=keyring)


async def test_a_row_that_is_no_token_counts_as_store_misconfigured(tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "vault.db")
    rows.insert(rows_under_first(3))
    SqliteStore(rows.path).insert_raw(**raw_row(metadata="{", encryption_scheme="local:v1"))
    async with SqliteStore(rows.path).open() as tokens:
        report = await sweep(tokens, local_encryption(2)).run()
    assert (report.rewrapped, dict(report.unreadable), report.remaining) == (3, {"store_misconfigured": 1}, 1)


async def test_a_row_with_a_wrong_new_ciphertext_stays_and_stops_nothing(tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "vault.db")
    good, bad = rows_under_first(40), rows_under_first(4)
    rows.insert([*good, *bad])
    before = rows.rows()
    strategy = _strategy()

    def another_text(_: str, context: TokenContext) -> Sealed:
        return strategy.seal("another token", context)

    def in_another_place(plaintext: str, context: TokenContext) -> Sealed:
        return strategy.seal(plaintext, context._replace(provider="another"))

    def too_long(plaintext: str, context: TokenContext) -> Sealed:
        sealed = strategy.seal(plaintext, context)
        return sealed._replace(ciphertext=sealed.ciphertext + "A" * MAXIMUM_CIPHERTEXT_CHARACTERS)

    def nonsense(plaintext: str, context: TokenContext) -> Sealed:
        return strategy.seal(plaintext, context)._replace(ciphertext="nonsense")

    faults = (another_text, in_another_place, too_long, nonsense)
    wrong = dict(zip([row["user_id"] for row in bad], faults, strict=True))
    service = EncryptionService(primary=_WrongForSome(strategy, wrong), counters=InMemoryCounters())
    observed = Observed()
    async with SqliteStore(rows.path).open() as tokens:
        report = await sweep(tokens, service, observed=observed).run()
    assert counts(report) == {**all_rewrapped(40), "due": 44, "unreadable": 4, "remaining": 4}
    assert dict(report.unreadable) == {"integrity": 2, "invalid_request": 1, "malformed_ciphertext": 1}
    assert sorted(observed.unreadable_ids) == sorted(row["id"] for row in bad)
    after = rows.rows()
    assert [row["id"] for row in bad if after[row["id"]] != before[row["id"]]] == []


@pytest.mark.parametrize("to_kms", [False, True], ids=["from KMS", "to KMS"])
async def test_credentials_that_expire_during_a_sweep_are_retried(kms: Kms, tmp_path: Path, *, to_kms: bool) -> None:
    rows = SqliteRows(tmp_path / "vault.db")
    source, target = (encryption(kms_settings(kms, primary=primary)) for primary in (not to_kms, to_kms))
    rows.insert([bound_row(source, str(uuid4()), 0) for _ in range(12)])

    def expire(report: SweepReport) -> None:
        if report.due == 12 and not report.rewrapped and not observed.waits:
            kms.faults.error("ExpiredTokenException", times=3)

    observed = Observed(on_progress=expire)
    async with SqliteStore(rows.path).open() as tokens:
        report = await sweep(tokens, target, observed=observed).run()
    assert counts(report) == all_rewrapped(12)
    assert set(observed.waits) == {"key_unavailable"}
    assert observed.unreadable_ids == []


async def test_credentials_that_stay_expired_end_the_sweep_without_blame(kms: Kms, tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "vault.db")
    under_kms, local = (encryption(kms_settings(kms, primary=primary)) for primary in (True, False))
    rows.insert([bound_row(under_kms, str(uuid4()), 0) for _ in range(10)])
    kms.faults.error("ExpiredTokenException")
    observed = Observed()
    async with SqliteStore(rows.path).open() as tokens:
        report = await sweep(tokens, local, observed=observed, plan=SweepPlan(retry_seconds=0.2)).run()
    assert report.stopped == "the AWS credentials have expired"
    assert counts(report) == {**all_rewrapped(10), "rewrapped": 0, "remaining": 10}
    assert (observed.unreadable_ids, observed.events) == ([], [])


async def test_a_primary_denied_during_a_sweep_ends_it_without_blame(tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "vault.db")
    made = rows_under_first(5)
    rows.insert(made)

    def denied(_: str, __: TokenContext) -> Sealed:
        raise KeyDenied("the key is disabled")

    primary = _WrongForSome(_strategy(), {made[0]["user_id"]: denied})
    observed = Observed()
    async with SqliteStore(rows.path).open() as tokens:
        with pytest.raises(KeyDenied):
            await sweep(
                tokens, EncryptionService(primary=primary, counters=InMemoryCounters()), observed=observed
            ).run()
    assert observed.unreadable_ids == []
