"""The table of what a provider's answers leave: walked against a served vault, and compared with the document."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.errors import GrantRejected
from app.refresh.provider_pauses import PAUSE_SECONDS
from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.oauth.outcomes import HEADING, TABLE, Outcome, Row, render, status_of
from tests.support.oauth.stand_in import OAuthStandIn, oauth_stand_in
from tests.support.paths import ROOT
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually

DOCUMENT = ROOT / "docs" / "refresh.md"
PROVIDERS = {outcome.name: f"case-{number}" for number, outcome in enumerate(TABLE)}
RECOVERED_SECONDS = 30  # two in fact, on a quiet machine


@dataclass(frozen=True, slots=True)
class Case:
    """A token at a provider that shows one outcome, and the answer of a reveal that refreshes it."""

    outcome: Outcome
    path: str
    stored: dict[str, Any]
    refresh_token: str
    asked_at: datetime
    revealed: httpx.Response


class World:
    """A served vault and one provider under a name for each outcome, so that a pause of one concerns no other."""

    def __init__(self, service: Service, store: SqliteStore, provider: OAuthStandIn, file: Path) -> None:
        self.client = service.client()
        self.provider = provider
        self._store = store
        self._file = file

    def refresh(self, outcome: Outcome) -> Case:
        """Store a token that has expired, and reveal it while the provider behaves like this."""
        refresh_token = self.provider.seed()
        path = f"/v1/users/{uuid4()}/tokens/{PROVIDERS[outcome.name]}"
        body = {
            "access_token": "first",
            "refresh_token": refresh_token,
            "expires_at": "2026-01-01T00:00:00Z",
            "scopes": ["before"],
            "base_url": outcome.base_url,
        }
        stored = self.client.put(path, json=body)
        assert stored.status_code == 201, stored.text
        if outcome.answer is not None:
            self.provider.script(outcome.answer)
        return Case(outcome, path, stored.json(), refresh_token, datetime.now(UTC), self.client.get(path))

    def row(self, case: Case) -> dict[str, Any]:
        return next(row for row in self._store.rows() if row["id"] == case.stored["id"])

    def has_received(self, requests: int) -> bool:
        return len(self.provider.requests) >= requests

    def is_revealed(self, case: Case) -> bool:
        return self.client.get(case.path).status_code == httpx.codes.OK

    def let_retry(self, case: Case) -> None:
        """Let the next attempt be due at once."""
        self._store.update_raw(case.stored["id"], refresh_retry_at=None)

    def correct(self) -> None:
        """Write the right entries into the file."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps({name: self.provider.entry() for name in PROVIDERS.values()}))
        draft.chmod(0o600)
        draft.replace(self._file)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("outcomes")
    file, store = folder / "providers.json", SqliteStore(folder / "vault.db")
    with oauth_stand_in() as provider:
        file.write_text(json.dumps({PROVIDERS[outcome.name]: provider.entry(**outcome.entry) for outcome in TABLE}))
        file.chmod(0o600)
        with running_service(folder, {**store.environment(), "OAUTH_PROVIDERS_FILE": str(file)}) as service:
            world = World(service, store, provider, file)
            with world.client:
                yield world


@pytest.fixture(scope="module")
def hanging(world: World) -> Iterator[dict[str, Future[Case]]]:
    """The refreshes that hang, begun before the first test: the vault waits ten seconds for a provider."""
    with ThreadPoolExecutor() as threads:
        begun = {}
        for outcome in TABLE:
            if outcome.hangs:
                asked = len(world.provider.requests)
                begun[outcome.name] = threads.submit(world.refresh, outcome)
                eventually(partial(world.has_received, asked + 1))
        yield begun


@pytest.fixture
def case(world: World, hanging: dict[str, Future[Case]], outcome: Outcome) -> Case:
    return hanging[outcome.name].result() if outcome.hangs else world.refresh(outcome)


# those that hang come last, when their ten seconds have nearly passed
@pytest.mark.parametrize("outcome", sorted(TABLE, key=attrgetter("hangs")), ids=attrgetter("name"))
def test_each_answer_has_its_class_row_and_http_answer(world: World, case: Case, outcome: Outcome) -> None:
    if outcome.answered is None:
        assert case.revealed.status_code == 200, case.revealed.text
        assert case.revealed.json()["access_token"] != "first"
    else:
        status = status_of(outcome.answered)
        problem(case.revealed, status, outcome.answered.code)
        assert ("Retry-After" in case.revealed.headers) is (status == 503)
    if outcome.retry_after is not None:
        assert case.revealed.headers["Retry-After"] == str(outcome.retry_after)
    eventually(lambda: world.row(case)["refresh_holder"] is None)
    _require_row(world.row(case), case)
    assert world.provider.accepts(case.refresh_token) is not outcome.is_spent
    _require_next(world, case)


def _require_row(row: dict[str, Any], case: Case) -> None:
    outcome = case.outcome
    ok = row["metadata"]["status"] == "ok"
    state = row["refresh_attempts"], row["refresh_retry_at"] is not None, row["refresh_failure"]
    changed = row["version"] - case.stored["version"]
    match outcome.row:
        case Row.UNCHANGED | Row.PAUSED:
            assert (ok, changed, state) == (True, 0, (0, False, None))
        case Row.PUT_OFF:
            assert outcome.error is not None
            assert (ok, changed, state) == (True, 0, (1, True, outcome.error.code))
        case Row.ANSWER_LOST:
            assert (ok, changed, state) == (True, 0, (1, True, "answer_lost"))
        case Row.NEEDS_REAUTH:
            assert (row["metadata"]["status"], row["metadata"]["status_reason"]) == ("needs_reauth", outcome.reason)
            assert changed == 1
        case Row.REFRESHED:
            assert (ok, changed, state) == (True, 1, (0, False, None))
            lifetime = row["expires_at"] - datetime.now(UTC)
            expected = timedelta(seconds=outcome.lifetime_seconds)
            assert expected - timedelta(minutes=4) < lifetime <= expected
            assert row["scopes"] == list(outcome.scopes)


def _require_next(world: World, case: Case) -> None:
    """Require that the next call asks nobody in vain, and that the next refresh works unless the token is lost."""
    outcome, asked = case.outcome, len(world.provider.requests)
    if outcome.row is Row.REFRESHED:
        version = case.revealed.json()["version"]
        again = world.client.post(f"{case.path}/refresh", json={"rejected_version": version})
        assert again.status_code == 200, again.text
        return
    nothing_due_until = _nothing_due_until(world, case)
    again = world.client.get(case.path)
    if datetime.now(UTC) > nothing_due_until:
        return  # this machine is too busy to see it
    assert again.status_code == (409 if outcome.error is GrantRejected else case.revealed.status_code)
    assert len(world.provider.requests) == asked
    if outcome.answer is None or outcome.retry_after or outcome.row in {Row.PAUSED, Row.NEEDS_REAUTH}:
        return
    world.let_retry(case)
    if outcome.is_spent:
        problem(world.client.get(case.path), 409, "token_inactive")
        assert world.row(case)["metadata"]["status_reason"] == "refresh_outcome_lost"
    else:
        assert world.client.get(case.path).json()["min_ttl_met"] is True


def _nothing_due_until(world: World, case: Case) -> datetime:
    """Return the time at which the provider may be asked again about this token."""
    retry_at = world.row(case)["refresh_retry_at"]
    if retry_at is not None:
        return datetime.fromisoformat(retry_at)
    if case.outcome.row is Row.PAUSED:
        return case.asked_at + timedelta(seconds=PAUSE_SECONDS)
    return datetime.max.replace(tzinfo=UTC)


def test_a_corrected_entry_works_within_seconds(world: World) -> None:
    """A wrong secret, id or URL changes no row, so correcting the file is all there is to do. This test is the last."""
    wrong = [world.refresh(outcome) for outcome in TABLE if outcome.row is Row.PAUSED and outcome.answer is None]
    assert len(wrong) == 3
    world.correct()
    corrected_at = time.monotonic()
    for case in wrong:
        eventually(partial(world.is_revealed, case))
    assert time.monotonic() - corrected_at < RECOVERED_SECONDS
    assert all(world.row(case)["version"] == case.stored["version"] + 1 for case in wrong)


def test_the_document_holds_the_table() -> None:
    text = DOCUMENT.read_text()
    found = text[text.index(HEADING) :].partition("\n\n")[0] + "\n"
    assert found == render()
