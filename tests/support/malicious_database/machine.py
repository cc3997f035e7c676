"""The state machine: calls of the vault, and writes of the database between any two of them.

A call may fail for a token whose row the database has written: a database may destroy. It must not deceive, and what it
has not written must work.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from pydantic import SecretStr

from app.api.answers import json_bytes, token_answer
from app.errors import TokenNotFound, VaultError
from app.rewrap.on_read import RewrapOnRead
from app.rewrap.report import SilentObserver, SweepReport
from app.rewrap.sweep import Sweep, SweepPlan
from app.security.encryption_service import EncryptionService
from app.stores.rows import COLUMNS
from app.tokens.cipher import TokenCipher
from app.tokens.events import INTENT, Operation, TokenEvent, TokenEvents
from app.tokens.models import (
    UNSET,
    Caller,
    RevealedToken,
    StoredToken,
    TokenId,
    TokenInput,
    TokenPatch,
    TokenStatus,
    Unset,
)
from app.tokens.repository import TokenRepository
from app.tokens.reveals import RevealOptions
from app.tokens.vault import TokenVault
from tests.support.malicious_database.model import Model, Pair, legacy_ciphertexts, shown_token_id_of, token_id_of
from tests.support.malicious_database.tables import Row, Table
from tests.support.malicious_database.values import (
    ALICE,
    BOB,
    EDITS,
    EVIL,
    OTHER_URL,
    SECRET_COLUMNS,
    TOKEN_IDS,
    URL,
    old_ciphertext,
)

T = TypeVar("T")
CALLER = Caller("tests")
_TOKEN_ID = ("user_id", "provider", "service_type")
_URL_COLUMNS = ("provider_url", "metadata")
_PARTS = (  # of a row, that attackers write together
    _TOKEN_ID,
    _URL_COLUMNS,
    (*SECRET_COLUMNS, "encryption_scheme"),
    (*SECRET_COLUMNS, "encryption_scheme", *_URL_COLUMNS),
    tuple(column for column in COLUMNS if column not in {"id", *_TOKEN_ID}),
)
parts = st.sampled_from(_PARTS) | st.sampled_from([(column,) for column in COLUMNS])
wheres = st.sampled_from([_URL_COLUMNS, ("provider_url",), ("metadata",)])
numbers = st.integers(0, 7)
choices = st.integers(0, 10_000)
token_ids = st.sampled_from(TOKEN_IDS)
urls = st.sampled_from([URL, URL, OTHER_URL, None])


class Trail:
    """An audit trail that keeps its events until they are taken."""

    def __init__(self) -> None:
        self._events: list[TokenEvent] = []

    def require_open(self) -> None: ...

    async def append(self, event: TokenEvent) -> None:
        if event.outcome != INTENT:
            self._events.append(event)

    async def append_many(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            await self.append(event)

    async def append_refusal(self, event: TokenEvent) -> None:
        await self.append(event)

    def take(self) -> list[TokenEvent]:
        taken, self._events = self._events, []
        return taken


@dataclass(frozen=True, slots=True)
class World:
    """What all examples of a test share. `legacy`: whether the services read PulsePlan's formats."""

    runner: asyncio.Runner
    tokens: TokenRepository
    table: Table
    services: Sequence[EncryptionService]
    legacy: bool


class MaliciousDatabase(RuleBasedStateMachine):
    """Calls of `TokenVault`, and writes to its table in between. A subclass sets `world`.

    A row in PulsePlan's formats authenticates no URL, so its rewrap or rotation adopts the one that stands there and
    binds it, and the audit event says which format was opened.
    """

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self._trail = Trail()
        self._events = TokenEvents(audit=self._trail)
        self._ciphers = [TokenCipher(encryption=service) for service in self.world.services]
        self._vaults = [
            TokenVault(tokens=self.world.tokens, cipher=cipher, events=self._events) for cipher in self._ciphers
        ]
        self.model = Model(reads_legacy=self.world.legacy)
        self.old_ciphertexts: list[str] = []
        self.snapshots: list[Row] = []
        self._count = 0

    @initialize()
    def begin(self) -> None:
        assert self.world.table.write(delete=self._rows(), insert=[])
        for user_id in (ALICE, BOB):
            for number in range(2):
                secret = f"old secret {number} of {user_id}"
                self.model.old[secret] = user_id
                ciphertext = old_ciphertext(secret, user_id)
                self.old_ciphertexts += [ciphertext, ciphertext.removeprefix("v1:")]
        for number, token_id in enumerate(TOKEN_IDS):
            self.store(token_id, number, URL, has_refresh=True)
        self.reveal_all()

    # what callers do

    @rule(token_id=token_ids, vault=numbers, base_url=urls, has_refresh=st.booleans())
    def store(self, token_id: TokenId, vault: int, base_url: str | None, has_refresh: bool) -> None:
        """Store always works, whatever the row holds."""
        pair, given = self._secrets(has_refresh=has_refresh, base_url=base_url)
        self.model.give(token_id, pair, base_url)
        self.model.urls.setdefault(token_id, set()).add(base_url)
        self._must(self._vault(vault).store(token_id, given, caller=CALLER))
        self.model.untouched[token_id] = pair

    @rule(token_id=token_ids, vault=numbers, base_url=urls | st.just(UNSET), has_refresh=st.booleans())
    def rotate(self, token_id: TokenId, vault: int, base_url: str | Unset | None, has_refresh: bool) -> None:
        pair, given = self._secrets(has_refresh=has_refresh, base_url=base_url)
        before = self.model.untouched.get(token_id)
        self.model.give(token_id, pair, None if isinstance(base_url, Unset) else base_url)
        if not isinstance(base_url, Unset):
            self.model.urls.setdefault(token_id, set()).add(base_url)
        rotated = self._call(self._vault(vault).rotate(token_id, given, caller=CALLER), token_id)
        if isinstance(rotated, VaultError):
            return
        self._adopt()
        if isinstance(base_url, Unset):
            self.model.keep_url(token_id, pair, rotated)
        if before is not None:
            moves = self.model.places[before.access].base_url != rotated.base_url
            kept = None if moves else before.refresh
            self.model.untouched[token_id] = replace(pair, refresh=pair.refresh or kept)

    @rule(token_id=token_ids, vault=numbers)
    def patch(self, token_id: TokenId, vault: int) -> None:
        changes = TokenPatch(status=TokenStatus.OK, metadata={"a": self._count})
        self._call(self._vault(vault).patch(token_id, changes, caller=CALLER), token_id)

    @rule(token_id=token_ids, vault=numbers)
    def delete(self, token_id: TokenId, vault: int) -> None:
        """Delete always works, whatever the row holds."""
        exists = token_id in map(token_id_of, self._rows())
        deleted = self._try(self._vault(vault).delete(token_id, caller=CALLER))
        assert isinstance(deleted, TokenNotFound) if not exists else deleted is None, f"a token stays: {deleted!r}"
        assert token_id not in map(token_id_of, self._rows())
        self.model.untouched.pop(token_id, None)

    @rule(user_id=st.sampled_from((ALICE, BOB)), vault=numbers)
    def erase(self, user_id: str, vault: int) -> None:
        """Erase always works, whatever the rows hold."""
        owned = [row for row in self._rows() if row["user_id"] == user_id]
        erased = self._must(self._vault(vault).delete_for_user(user_id, caller=CALLER))
        left = [row for row in self._rows() if row["user_id"] == user_id]
        assert (erased.deleted, erased.kept, left) == (len(owned), (), [])
        self.model.touch(owned)

    @rule(user_id=st.sampled_from((ALICE, BOB)), vault=numbers)
    def list_user(self, user_id: str, vault: int) -> None:
        rows = self._must(self._vault(vault).list_for_user(user_id, caller=CALLER))
        assert {row.token_id for row in rows} == {shown_token_id_of(r) for r in self._rows() if r["user_id"] == user_id}
        for row in rows:
            if isinstance(row, StoredToken):
                json_bytes(token_answer(row, refreshable=False))
            else:
                assert row.token_id not in self.model.untouched, "a row that nobody touched is unreadable"

    @rule(token_id=token_ids, vault=numbers)
    def rewrap(self, token_id: TokenId, vault: int) -> None:
        with self._leaving_legacy_rows(all_of_them=False):
            self._call(self._vault(vault).rewrap(token_id, caller=CALLER), token_id)

    @rule(token_id=token_ids, vault=numbers, rewrap_legacy=st.booleans())
    def reveal_and_rewrap(self, token_id: TokenId, vault: int, rewrap_legacy: bool) -> None:
        cipher = self._ciphers[vault % len(self._ciphers)]
        on_read = RewrapOnRead(
            tokens=self.world.tokens,
            cipher=cipher,
            events=self._events,
            rewrap_legacy=rewrap_legacy,
            delay_seconds=0,
        )
        reader = TokenVault(tokens=self.world.tokens, cipher=cipher, events=self._events, on_reveal=on_read.offer)

        async def reveal() -> list[RevealedToken | VaultError]:
            others = asyncio.all_tasks()
            answers = await reader.reveal_many([token_id], caller=CALLER)
            await asyncio.gather(*(asyncio.all_tasks() - others))  # the rewrap
            return answers

        with self._leaving_legacy_rows(all_of_them=not rewrap_legacy) as taken:
            [answer] = self._must(reveal())
        [event] = [event for event in taken if event.operation is Operation.REVEAL]
        self.model.require_answer(token_id, answer, event, include_refresh=False)

    @rule(vault=numbers, legacy_too=st.booleans())
    def sweep(self, vault: int, legacy_too: bool) -> None:
        """A sweep leaves PulsePlan's formats alone unless it is asked, and no row keeps it from the others."""
        cipher = self._ciphers[vault % len(self._ciphers)]
        for rewrap_legacy in (False, True) if legacy_too else (False,):
            sweep = Sweep(
                tokens=self.world.tokens,
                cipher=cipher,
                events=self._events,
                observer=SilentObserver(),
                plan=SweepPlan(rewrap_legacy=rewrap_legacy),
            )
            with self._leaving_legacy_rows(all_of_them=not rewrap_legacy):
                report: SweepReport = self._must(sweep.run())
            assert report.stopped is None, report.stopped
        for row in self._rows():
            if token_id_of(row) in self.model.untouched:
                assert row["encryption_scheme"] == cipher.primary_scheme, "a row that nobody touched is not rewrapped"

    @rule()
    def reveal_all(self) -> None:
        """Each token has an answer of its own, whatever the rows of the others hold."""
        call = self._vault(self._count).reveal_many(
            TOKEN_IDS, caller=CALLER, options=RevealOptions(include_refresh=True)
        )
        answers = self._must(call)
        events = {event.token_id: event for event in self._trail.take()}
        for token_id, answer in zip(TOKEN_IDS, answers, strict=True):
            self.model.require_answer(token_id, answer, events[token_id], include_refresh=True)

    # what the database does

    @rule(part=parts, one=numbers, other=numbers, stays=st.booleans())
    def swap(self, part: Sequence[str], one: int, other: int, stays: bool) -> None:
        rows = self._rows()
        if rows and one % len(rows) != other % len(rows):
            first, second = rows[one % len(rows)], rows[other % len(rows)]
            self._write([first, second], [first | _part(second, part), second | _part(first, part)], stays=stays)

    @rule(part=parts, one=numbers, other=numbers, stays=st.booleans())
    def copy(self, part: Sequence[str], one: int, other: int, stays: bool) -> None:
        rows = self._rows()
        if rows:
            self._change(other, _part(rows[one % len(rows)], part), stays=stays)

    @rule(one=numbers, other=numbers, same=st.booleans(), stays=st.booleans())
    def cross(self, one: int, other: int, same: bool, stays: bool) -> None:
        """Put a row's access token into the column of the refresh token, of the same or another row, and back."""
        rows = self._rows()
        if rows:
            access, refresh = (rows[one % len(rows)][column] for column in SECRET_COLUMNS)
            crossed = {"access_token": refresh or access, "refresh_token": access}
            self._change(one if same else other, crossed, stays=stays)

    @rule(number=numbers, url=st.sampled_from([None, URL, OTHER_URL, EVIL]), where=wheres, stays=st.booleans())
    def redirect(self, number: int, url: str | None, where: Sequence[str], stays: bool) -> None:
        """Write a base URL into either or both of the columns that may hold it."""
        changes = {"provider_url": url, "metadata": json.dumps({"base_url": url})}
        self._change(number, _part(changes, where), stays=stays)

    @rule(number=numbers, scheme=st.sampled_from(EDITS["encryption_scheme"]), stays=st.booleans())
    def relabel(self, number: int, scheme: str | None, stays: bool) -> None:
        """Name another scheme than the ciphertexts have."""
        self._change(number, {"encryption_scheme": scheme}, stays=stays)

    @rule(part=parts | st.none(), snapshot=choices, number=numbers, stays=st.booleans())
    def replay(self, part: Sequence[str] | None, snapshot: int, number: int, stays: bool) -> None:
        """Put back a part of any earlier row, or the whole row in place of those with its id or token id."""
        if not self.snapshots:
            return
        earlier = self.snapshots[snapshot % len(self.snapshots)]
        if part is not None:
            self._change(number, _part(earlier, part), stays=stays)
            return
        ids = earlier["id"], token_id_of(earlier)
        self._write(
            [row for row in self._rows() if row["id"] == ids[0] or token_id_of(row) == ids[1]], [earlier], stays=stays
        )

    @rule(column=st.sampled_from(COLUMNS), number=numbers, choice=choices, stays=st.booleans())
    def edit(self, column: str, number: int, choice: int, stays: bool) -> None:
        values = [*EDITS[column], *(self.old_ciphertexts if column in SECRET_COLUMNS else ())]
        self._change(number, {column: values[choice % len(values)]}, stays=stays)

    @rule(
        number=numbers,
        choice=numbers,
        url=st.sampled_from([None, URL, EVIL]),
        both=st.booleans(),
        swept=st.booleans(),
    )
    def downgrade(self, number: int, choice: int, url: str | None, both: bool, swept: bool) -> None:
        """Make a row look as if PulsePlan had written it; a sweep may follow at once."""
        old = self.old_ciphertexts
        changes = {
            "access_token": old[choice % len(old)],
            "refresh_token": old[(choice + 2) % len(old)] if both else "",
            "encryption_scheme": None,
            "metadata": "{}",
            "provider_url": url,
        }
        self._change(number, changes, stays=True)
        if swept:
            self.sweep(choice, legacy_too=False)

    @rule(
        number=numbers, column=st.sampled_from(SECRET_COLUMNS), at=choices, bit=st.integers(0, 6), stays=st.booleans()
    )
    def flip(self, number: int, column: str, at: int, bit: int, stays: bool) -> None:
        rows = self._rows()
        if rows and (text := rows[number % len(rows)][column]):
            at %= len(text)
            flipped = text[:at] + chr(ord(text[at]) ^ (1 << bit)) + text[at + 1 :]
            self._change(number, {column: flipped}, stays=stays)

    @rule(number=numbers)
    def drop(self, number: int) -> None:
        rows = self._rows()
        if rows:
            self._write([rows[number % len(rows)]], [], stays=True)

    def _change(self, number: int, changes: Mapping[str, Any], *, stays: bool) -> None:
        rows = self._rows()
        if rows:
            row = rows[number % len(rows)]
            self._write([row], [{**row, **changes}], stays=stays)

    def _write(self, delete: list[Row], insert: list[Row], *, stays: bool) -> None:
        """Write, and reveal everything. Unless the write `stays`, the rows are put back, and must work as before."""
        self._remember()
        untouched = dict(self.model.untouched)
        if self.world.table.write(delete=delete, insert=insert):
            self.model.touch(row for row in (*delete, *insert) if row not in delete or row not in insert)
            self.reveal_all()
            if not stays:
                assert self.world.table.write(delete=insert, insert=delete)
                self.model.untouched = untouched

    # how the vault is called

    def _secrets(self, *, has_refresh: bool, base_url: str | Unset | None) -> tuple[Pair, TokenInput]:
        self._count += 1
        pair = Pair(f"access {self._count}", f"refresh {self._count}" if has_refresh else None)
        return pair, TokenInput(
            access_token=SecretStr(pair.access),
            refresh_token=UNSET if pair.refresh is None else SecretStr(pair.refresh),
            base_url=base_url,
        )

    def _vault(self, number: int) -> TokenVault:
        return self._vaults[number % len(self._vaults)]

    def _call(self, call: Coroutine[Any, Any, T], token_id: TokenId) -> T | VaultError:
        """Return the result, or the error, which only a row that the database has written may cause."""
        result = self._try(call)
        if isinstance(result, VaultError):
            claim = f"a token that nobody touched is refused: {result.code} {result.detail}"
            assert token_id not in self.model.untouched, claim
        return result

    def _must(self, call: Coroutine[Any, Any, T]) -> T:
        result = self._try(call)
        assert not isinstance(result, VaultError), f"a call that always works fails: {result.code} {result.detail}"
        return result

    def _try(self, call: Coroutine[Any, Any, T]) -> T | VaultError:
        self._remember()
        self._trail.take()
        try:
            return self.world.runner.run(call)
        except VaultError as error:
            return error

    @contextmanager
    def _leaving_legacy_rows(self, *, all_of_them: bool) -> Iterator[list[TokenEvent]]:
        """Require that rewraps leave PulsePlan's formats alone: all of them, or those that stand in two rows.

        The audit events are taken, and must name each row into which an old secret was bound.
        """
        before = {row["id"]: row for row in self._rows() if legacy_ciphertexts(row)}
        readable = {row.id for row in self._readable()}
        copies = Counter(
            (row["user_id"], text)
            for row in before.values()
            if row["id"] in readable
            for text in legacy_ciphertexts(row)
        )
        events: list[TokenEvent] = []
        yield events
        events += self._trail.take()
        adopted = self._adopt(events)
        for row in self._rows():
            old = before.get(row["id"])
            if old is None or all(old[column] == row[column] for column in SECRET_COLUMNS):
                continue
            assert not all_of_them, "a secret in PulsePlan's formats is rewrapped unasked"
            twice = [text for text in legacy_ciphertexts(old) if copies[row["user_id"], text] > 1]
            assert not twice, "a secret in PulsePlan's formats that stands in two rows is bound to one"
            assert token_id_of(row) in adopted, "no audit event names the format that a rewrap opened"

    def _readable(self) -> list[StoredToken]:
        async def read() -> list[StoredToken]:
            found = [row for user in (ALICE, BOB) for row in await self.world.tokens.list_for_user(user)]
            return [row for row in found if isinstance(row, StoredToken)]

        return self.world.runner.run(read())

    def _adopt(self, events: list[TokenEvent] | None = None) -> set[TokenId]:
        """Note the URLs of the rows into which, by their audit events, an old secret was bound; return their ids."""
        bound = self.model.bind(self._trail.take() if events is None else events)
        found = self.world.runner.run(self.world.tokens.get_many(bound)) if bound else {}
        for token_id, row in found.items():
            if isinstance(row, StoredToken):
                self.model.urls.setdefault(token_id, set()).add(row.base_url)
        return set(bound)

    def _rows(self) -> list[Row]:
        return self.world.table.rows()

    def _remember(self) -> None:
        self.snapshots = (self.snapshots + self._rows())[-200:]


def _part(row: Row, columns: Sequence[str]) -> Row:
    return {column: row[column] for column in columns}
