"""Each change leaves its intent in the trail before it is made, and its outcome afterwards."""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.audit.chained_lines import Chain, event_members, start_members
from app.audit.reader import NO_OUTCOME, EventFilter, search_events
from app.audit.trail import SignedAuditTrail
from app.errors import AuditUnavailable, TokenNotFound, VersionConflict
from app.observability.in_memory_counters import InMemoryCounters
from app.security.encryption_service import EncryptionService
from app.security.local_strategy import LocalStrategy
from app.tokens.cipher import TokenCipher
from app.tokens.events import INTENT, Operation, TokenEvent, TokenEvents
from app.tokens.models import Caller, Precondition, TokenId, TokenInput, TokenPatch, TokenStatus
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault
from tests.support.audit.trails import (
    KEY,
    OTHER_KEY,
    RECOVERY_SECONDS,
    HeldDisk,
    an_event,
    files,
    full_disk,
    log_files,
    members,
    notes,
    opened_trail,
    recovered,
    verified,
)
from tests.support.security.keys import keyring
from tests.support.stores.pausing import pausing
from tests.support.stores.stores import SqliteStore

CALLER = Caller("tests")
GIVEN = TokenInput(access_token=SecretStr("secret"))
ID = "0123456789abcdef"


def an_intent(number: int, *, intent: str = ID) -> TokenEvent:
    return an_event(number)._replace(operation=Operation.STORE, outcome=INTENT, revealed=(), intent=intent)


def an_outcome(number: int, *, intent: str = ID) -> TokenEvent:
    return an_intent(number, intent=intent)._replace(outcome="success")


@asynccontextmanager
async def _vault(
    folder: Path, trail: SignedAuditTrail, instrument: Callable[[TokenRepository], TokenRepository] = lambda same: same
) -> AsyncIterator[TokenVault]:
    encryption = EncryptionService(primary=LocalStrategy(keyring=keyring()), counters=InMemoryCounters())
    encryption.encrypt_token("derives the key, which a busy machine may not do in time", str(uuid4()))
    async with SqliteStore(folder / "vault.db").open() as tokens:
        cipher, events = TokenCipher(encryption=encryption), TokenEvents(audit=trail)
        yield TokenVault(tokens=instrument(tokens), cipher=cipher, events=events, deadline_seconds=RECOVERY_SECONDS)


async def test_each_change_leaves_an_intent_and_an_outcome_with_its_id(tmp_path: Path) -> None:
    token_id = TokenId(str(uuid4()), "google")
    async with opened_trail(tmp_path) as trail, _vault(tmp_path, trail) as vault:
        stored = (await vault.store(token_id, GIVEN, caller=CALLER)).token
        await vault.reveal(token_id, caller=CALLER)
        await vault.list_for_user(token_id.user_id, caller=CALLER)
        await vault.rotate(token_id, GIVEN, caller=CALLER)
        await vault.patch(token_id, TokenPatch(status=TokenStatus.OK), caller=CALLER)
        stale = Precondition(versions=frozenset({stored.version}))
        with pytest.raises(VersionConflict):
            await vault.rotate(token_id, GIVEN, caller=CALLER, precondition=stale)
        await vault.delete(token_id, caller=CALLER)
        with pytest.raises(TokenNotFound):
            await vault.delete(token_id, caller=CALLER)
        await vault.store(token_id, GIVEN, caller=CALLER)
        await vault.delete_for_user(token_id.user_id, caller=CALLER)
        await vault.delete_for_user(token_id.user_id, caller=CALLER)
    changes = ["store", "rotate", "patch", "delete", "store", "erase_user"]
    intents = members(files(tmp_path), "intent")
    outcomes = [event for event in members(files(tmp_path)) if "intent" in event]
    assert [intent["operation"] for intent in intents] == changes
    assert [(one["intent"], one["operation"]) for one in outcomes] == [
        (one["intent"], one["operation"]) for one in intents
    ]
    assert all(before["seq"] < after["seq"] for before, after in zip(intents, outcomes, strict=True))
    assert {event["outcome"] for event in outcomes} == {"success"}
    assert len(members(files(tmp_path))) == len(changes) + 5  # reads, refusals and the erasure of nothing
    report = verified(files(tmp_path))
    assert (report.findings, report.warnings, report.events) == ([], [], len(changes) + 5)


async def test_the_intent_is_in_the_file_before_the_change(tmp_path: Path) -> None:
    """A pause around the insertion stands for the moment of a kill: before the commit, and after it."""
    seen: list[tuple[int, int]] = []

    async def look() -> None:
        rows = SqliteStore(tmp_path / "vault.db").rows()
        seen.append((len(members(files(tmp_path), "intent")), len(rows)))
        if rows:
            raise asyncio.CancelledError

    async with (
        opened_trail(tmp_path) as trail,
        _vault(tmp_path, trail, lambda tokens: pausing(tokens, look, only="insert")) as vault,
    ):
        with suppress(asyncio.CancelledError):
            await vault.store(TokenId(str(uuid4()), "google"), GIVEN, caller=CALLER)
    assert seen == [(1, 0), (1, 1)]


async def test_a_change_is_not_made_if_its_intent_cannot_be_written(tmp_path: Path) -> None:
    """Without an intent it was made, and its event came too late for a process that is killed first."""
    async with opened_trail(tmp_path) as trail, _vault(tmp_path, trail) as vault:
        [file] = files(tmp_path)
        with full_disk(file), pytest.raises(AuditUnavailable):
            await vault.store(TokenId(str(uuid4()), "google"), GIVEN, caller=CALLER)
        assert SqliteStore(tmp_path / "vault.db").rows() == []
        await recovered(trail)
    [event] = members(files(tmp_path))
    assert (event["operation"], event["outcome"], event["late"]) == ("store", "audit_unavailable", True)
    assert verified(files(tmp_path)).warnings == []


async def test_an_intent_on_a_slow_disk_refuses_once_and_gets_its_outcome(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with (
        opened_trail(tmp_path, sync="always", system=disk.calls, bound_seconds=0.5) as trail,
        _vault(tmp_path, trail) as vault,
    ):
        disk.hold()
        with pytest.raises(AuditUnavailable):
            await vault.store(TokenId(str(uuid4()), "google"), GIVEN, caller=CALLER)
        assert SqliteStore(tmp_path / "vault.db").rows() == []
        disk.release()
        await recovered(trail)
        await trail.append(an_event())
    [intent] = members(files(tmp_path), "intent")
    [outcome, _] = members(files(tmp_path))
    assert (outcome["intent"], outcome["outcome"]) == (intent["intent"], "audit_unavailable")
    assert verified(files(tmp_path)).warnings == []


async def test_verify_warns_of_a_change_without_an_outcome(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        await trail.append(an_intent(1, intent="1" * 16))
        await trail.append(an_intent(2, intent="2" * 16))
        await trail.append(an_outcome(2, intent="2" * 16))
        live = verified(files(tmp_path))
    assert (live.findings, live.warnings, notes(live)) == ([], [], ["live"])
    assert "outcome is not recorded yet: 1" in live.notes[0].detail
    ended = verified(files(tmp_path))
    assert (ended.findings, ended.events) == ([], 1)
    [warning] = ended.warnings
    assert (warning.problem, warning.location.seq) == ("no_outcome", 2)


@pytest.mark.parametrize(("later_seconds", "lost"), [(59, False), (61, True)])
def test_verify_warns_of_an_outcome_that_a_live_chain_lost(tmp_path: Path, later_seconds: int, *, lost: bool) -> None:
    """The process need not end: it loses an outcome too if 10 000 events wait for the disk."""
    chain, at = Chain(key=KEY), time.time()
    events = [(at, an_intent(1, intent="1" * 16)), (at + later_seconds, an_intent(2, intent="2" * 16))]
    start = start_members(at, key_name=KEY.name, sync="always", named=[])
    file = log_files(tmp_path).file(chain.id, 1)
    lines = chain.sign([start, *(event_members(when, event, 0) for when, event in events)])
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    with file.open("rb") as written:
        fcntl.flock(written, fcntl.LOCK_EX)  # as the process that writes the chain holds it
        live = verified([file])
    assert (live.findings, notes(live)) == ([], ["live"])
    assert [(one.problem, one.location.seq) for one in live.warnings] == ([("no_outcome", 2)] if lost else [])
    assert f"outcome is not recorded yet: {1 if lost else 2}" in live.notes[0].detail


async def test_a_part_of_a_trail_warns_of_no_outcome_in_another_file(tmp_path: Path) -> None:
    async with opened_trail(tmp_path, maximum_bytes=1) as trail:  # a file for each line
        await trail.append(an_intent(1))
        await trail.append(an_outcome(1))
    *_, outcome, end = files(tmp_path)
    end.unlink()  # as a kill leaves it
    async with opened_trail(tmp_path):
        pass
    whole = verified(files(tmp_path))
    assert (whole.findings, whole.warnings) == ([], [])
    part = verified([file for file in files(tmp_path) if file != outcome], partial=True)
    assert (part.findings, part.warnings, notes(part)) == ([], [], ["goes_on"])
    assert "outcome is not recorded yet: 1" in part.notes[0].detail


async def test_show_has_one_entry_for_each_change(tmp_path: Path) -> None:
    async with opened_trail(tmp_path, maximum_bytes=1) as trail:  # a file for each line
        for number, event in enumerate([an_intent(1), an_outcome(1), an_intent(2, intent="2" * 16), an_event(3)]):
            await trail.append(event)
            assert len(files(tmp_path)) == number + 2
    for order in (files(tmp_path), files(tmp_path)[::-1]):
        found = search_events(order, EventFilter(), keys=[KEY]).events
        assert [(one.event["user_id"][-1], one.event["outcome"]) for one in found] == [
            ("1", "success"),
            ("2", NO_OUTCOME),
            ("3", "success"),
        ]
        [unknown] = search_events(order, EventFilter(outcome=NO_OUTCOME), keys=[KEY]).events
        assert unknown.event["kind"] == "intent"
        assert search_events(order, EventFilter(user=str(uuid4())), keys=[KEY]).events == []
    # an outcome that is not genuine conceals no intent
    assert len(search_events(files(tmp_path), EventFilter(), keys=[OTHER_KEY]).events) == 4
