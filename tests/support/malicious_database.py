"""A state machine in which a database swaps, copies, replays and edits any column between any two calls.

Its model knows for each secret the place that it was stored for. Whatever the database does, a reveal must return each
secret in its place or fail with an error of the vault.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar
from uuid import uuid4

import apsw
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from pydantic import SecretStr

from app.api.schemas import Revealed
from app.errors import VaultError
from app.observability.in_memory_counters import InMemoryCounters
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.security.formats import Family, family_of
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.strategy import KmsEnvelopeStrategy
from app.security.legacy_formats import PulsePlanLocalReader
from app.security.local_strategy import LocalStrategy
from app.security.strategy import EncryptionStrategy, Sealed
from app.stores.rows import COLUMNS
from app.stores.sqlite.repository import SqliteRepository
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import UNSET, Caller, RevealedToken, TokenId, TokenInput, TokenPatch, TokenStatus, Unset
from app.tokens.vault import TokenVault
from tests.support.security.key_service import KEY_ARN, InMemoryKeyService
from tests.support.security.keys import MASTER_KEY, OTHER_MASTER_KEY, keyring
from tests.support.security.legacy_tokens import legacy_ciphertext

T = TypeVar("T")
ALICE: Final = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
BOB: Final = "1e2feb89-414c-443c-9027-c4d1c386bbc4"
# each differs from the first in one member
TOKEN_IDS: Final = (
    TokenId(ALICE, "canvas", "default"),
    TokenId(BOB, "canvas", "default"),
    TokenId(ALICE, "google", "default"),
    TokenId(ALICE, "canvas", "b"),
)
URL: Final = "https://canvas.example.edu"
OTHER_URL: Final = "https://other.example.edu"
EVIL: Final = "https://attacker.example"
CALLER: Final = Caller("tests")

_KEYS: Final = {1: MASTER_KEY, 2: OTHER_MASTER_KEY}
_SECRETS: Final = tuple(field.value for field in SecretField)
_EDITS: Final[Mapping[str, Sequence[Any]]] = {
    "id": [str(uuid4())],
    "user_id": [ALICE, BOB],
    "provider": ["canvas", "google"],
    "service_type": ["default", "b"],
    "access_token": ["", "nonsense", "v1:AAAA", "kms:{}"],
    "refresh_token": [None, "", "nonsense", "v1:AAAA", "kms:{}"],
    "expires_at": [None, "2020-01-01T00:00:00+00:00", "infinity"],
    "scopes": [None, '["everything"]', "{"],
    "email": [None, "attacker@example.com"],
    "provider_url": [None, "", URL, OTHER_URL, EVIL, "javascript:alert(1)"],
    "is_active": [None, 0, 1],
    "metadata": [
        "{}",
        "[]",
        "{",
        '{"base_url": null}',
        '{"base_url": 7}',
        '{"base_url": ""}',
        json.dumps({"base_url": EVIL}),
        json.dumps({"base_url": URL}),
        json.dumps({"base_url": OTHER_URL, "status": "ok"}),
        f'{{"base_url": "{URL}", "base_url": "{EVIL}"}}',
    ],
    "version": [1, 2, 2**53],
    "encryption_scheme": [None, "", "local:v1", "local:v2", "pulseplan-local:v1", f"kms:{KEY_ARN}"],
    "created_at": [None],
    "updated_at": [None],
    "last_refreshed": ["2020-01-01T00:00:00+00:00"],
}
assert _EDITS.keys() == set(COLUMNS)

columns = st.sampled_from(COLUMNS) | st.sampled_from((*_SECRETS, "provider_url", "metadata", "encryption_scheme"))
numbers = st.integers(0, 7)
token_ids = st.sampled_from(TOKEN_IDS)
urls = st.sampled_from([URL, URL, OTHER_URL, None])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a secret belongs."""

    token_id: TokenId
    field: SecretField
    base_url: str | None


class ForgetfulStrategy:
    """A strategy with a planted bug: it does not bind one member of the context."""

    def __init__(self, strategy: EncryptionStrategy, member: str) -> None:
        self._strategy = strategy
        self._forgotten: dict[str, Any] = {member: None if member == "field" else ""}
        self.family = strategy.family

    @property
    def scheme(self) -> str | None:
        return self._strategy.scheme

    def open(self, ciphertext: str, context: TokenContext, *, claimed: str | None = None, wait: bool = True) -> str:
        return self._strategy.open(ciphertext, replace(context, **self._forgotten), claimed=claimed, wait=wait)

    def seal(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        return self._strategy.seal(plaintext, replace(context, **self._forgotten), wait=wait)


def encryption_services(*, legacy: bool, forgets: str | None = None) -> list[EncryptionService]:
    """Return services that read each other's ciphertexts; each has another primary: both master keys, and KMS."""
    counters = InMemoryCounters()
    data_keys = DataKeyCache(max_age_seconds=3600, max_messages=10**6, size=100, counters=counters)
    strategies: list[EncryptionStrategy] = [
        LocalStrategy(keyring=keyring(_KEYS, primary=1)),
        LocalStrategy(keyring=keyring(_KEYS, primary=2)),
        KmsEnvelopeStrategy(key_service=InMemoryKeyService(), data_keys=data_keys),
    ]
    if forgets is not None:
        strategies = [ForgetfulStrategy(strategy, forgets) for strategy in strategies]
    first, second, kms = strategies
    old = [PulsePlanLocalReader(keyring=keyring(_KEYS, primary=1))] if legacy else []
    services = [
        EncryptionService(primary=first, readers=[kms, *old], counters=counters),
        EncryptionService(primary=second, readers=[kms, *old], counters=counters),
        EncryptionService(primary=kms, readers=[first, *old], counters=counters),
    ]
    derived = [service.seal("x", TokenContext(ALICE)).ciphertext for service in services]
    for service in services:  # no call waits for a key
        for ciphertext in derived:
            service.open(ciphertext, TokenContext(ALICE))
        for user_id in (ALICE, BOB) if legacy else ():
            service.open(legacy_ciphertext("x", user_id), TokenContext(user_id))
    return services


class MaliciousDatabase(RuleBasedStateMachine):
    """Calls of `TokenVault` on a SQLite file, and writes to that file in between.

    Subclasses set `services`, `path` and `legacy`: whether the services read PulsePlan's formats. A row in those
    formats authenticates no URL, so its rewrap or rotation adopts the one that stands there and binds it.

    The model assumes that each URL that callers ever gave for a token may be trusted with its next secret: the database
    can put back the row from when that URL was current, and a rotation without a URL binds the new secret to it.
    """

    services: ClassVar[list[EncryptionService]]
    path: ClassVar[Path]
    legacy: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._database = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._database.set_busy_timeout(30_000)
        self._database.execute("PRAGMA synchronous = OFF")  # these writes need not survive
        self._database.execute("DELETE FROM oauth_tokens")
        self._tokens = SqliteRepository(path=self.path)
        events = TokenEvents(audit=NoAuditTrail())
        self._vaults = [
            TokenVault(tokens=self._tokens, cipher=TokenCipher(encryption=service), events=events)
            for service in self.services
        ]
        self.places: dict[str, Place] = {}
        self.given_urls: dict[TokenId, set[str | None]] = {}
        # PulsePlan's ciphertexts of each user that the database may hold, as from an old backup
        self.old: dict[str, str] = {}
        self.old_ciphertexts: list[str] = []
        self.snapshots: list[dict[str, Any]] = []
        self._count = 0

    def teardown(self) -> None:
        self._runner.run(self._tokens.close())
        self._runner.close()
        self._database.close()

    @initialize()
    def begin(self) -> None:
        for user_id in (ALICE, BOB):
            for number in range(2):
                secret = f"old secret {number} of {user_id}"
                self.old[secret] = user_id
                ciphertext = _old_ciphertext(secret, user_id)
                self.old_ciphertexts += [ciphertext, ciphertext.removeprefix("v1:")]
        for number, token_id in enumerate(TOKEN_IDS):
            self.store(token_id, number, URL, has_refresh=True)
        self.reveal_everything()

    # what callers do

    @rule(token_id=token_ids, vault=numbers, base_url=urls, has_refresh=st.booleans())
    def store(self, token_id: TokenId, vault: int, base_url: str | None, has_refresh: bool) -> None:
        given = self._input(token_id, base_url, has_refresh=has_refresh)
        self.given_urls.setdefault(token_id, set()).add(base_url)
        self._call(self._vault(vault).store(token_id, given, caller=CALLER))

    @rule(token_id=token_ids, vault=numbers, base_url=urls | st.just(UNSET), has_refresh=st.booleans())
    def rotate(self, token_id: TokenId, vault: int, base_url: str | Unset | None, has_refresh: bool) -> None:
        adopts = self.legacy and self._is_legacy(token_id)
        given = self._input(token_id, base_url, has_refresh=has_refresh)
        if not isinstance(base_url, Unset):
            self.given_urls.setdefault(token_id, set()).add(base_url)
        rotated = self._call(self._vault(vault).rotate(token_id, given, caller=CALLER))
        if rotated is None or not isinstance(base_url, Unset):
            return
        if adopts:
            self.given_urls[token_id].add(rotated.base_url)
        # a row whose URL was removed gives the new secret none
        assert rotated.base_url in self.given_urls[token_id] | {None}, "a new secret follows an edited URL"
        for secret in (given.access_token, given.refresh_token):
            if isinstance(secret, SecretStr):
                text = secret.get_secret_value()
                self.places[text] = replace(self.places[text], base_url=rotated.valid_base_url)

    @rule(token_id=token_ids, vault=numbers)
    def patch(self, token_id: TokenId, vault: int) -> None:
        changes = TokenPatch(status=TokenStatus.OK, metadata={"a": self._count})
        self._call(self._vault(vault).patch(token_id, changes, caller=CALLER))

    @rule(token_id=token_ids, vault=numbers)
    def rewrap(self, token_id: TokenId, vault: int) -> None:
        adopts = self.legacy and self._is_legacy(token_id)
        rewrapped = self._call(self._vault(vault).rewrap(token_id, caller=CALLER))
        if rewrapped is not None and adopts:
            self.given_urls[token_id].add(rewrapped.base_url)

    @rule(token_id=token_ids, vault=numbers)
    def reveal_one(self, token_id: TokenId, vault: int) -> None:
        revealed = self._call(self._vault(vault).reveal(token_id, caller=CALLER, include_refresh=False))
        if revealed is not None:
            self._require_place(token_id, revealed)

    @rule()
    def reveal_everything(self) -> None:
        vault = self._vault(self._count)
        results = self._run(vault.reveal_many(TOKEN_IDS, caller=CALLER, include_refresh=True))
        for token_id, result in zip(TOKEN_IDS, results or [], strict=True):
            if isinstance(result, RevealedToken):
                self._require_place(token_id, result)

    # what the database does

    @rule(column=columns, one=numbers, other=numbers)
    def swap(self, column: str, one: int, other: int) -> None:
        self._remember()
        rows = self._rows()
        if rows:
            first, second = rows[one % len(rows)], rows[other % len(rows)]
            self._set(first["id"], column, second[column])
            self._set(second["id"], column, first[column])
        self.reveal_everything()

    @rule(column=columns, to_column=st.sampled_from(_SECRETS), one=numbers, other=numbers, same=st.booleans())
    def copy(self, column: str, to_column: str, one: int, other: int, same: bool) -> None:
        self._remember()
        rows = self._rows()
        if rows:
            value = rows[one % len(rows)][column]
            self._set(rows[other % len(rows)]["id"], column if same else to_column, value)
        self.reveal_everything()

    @rule(one=numbers, other=numbers, kept=st.sets(st.sampled_from(COLUMNS)))
    def copy_row(self, one: int, other: int, kept: set[str]) -> None:
        """Copy a row over another one, all but the token id and some columns."""
        self._remember()
        rows = self._rows()
        if rows:
            source, target = rows[one % len(rows)], rows[other % len(rows)]
            for column in set(COLUMNS) - kept - {"id", "user_id", "provider", "service_type"}:
                self._set(target["id"], column, source[column])
        self.reveal_everything()

    @rule(column=columns | st.none(), snapshot=st.integers(0, 10_000), number=numbers)
    def replay(self, column: str | None, snapshot: int, number: int) -> None:
        """Put back a column of any earlier row, or all of them."""
        rows = self._rows()
        if rows and self.snapshots:
            earlier = self.snapshots[snapshot % len(self.snapshots)]
            target = rows[number % len(rows)]
            for name in COLUMNS if column is None else (column,):
                self._set(target["id"], name, earlier[name])
        self.reveal_everything()

    @rule(column=columns, number=numbers, choice=st.integers(0, 10_000))
    def edit(self, column: str, number: int, choice: int) -> None:
        self._remember()
        values = [*_EDITS[column], *(self.old_ciphertexts if column in _SECRETS else ())]
        rows = self._rows()
        if rows:
            self._set(rows[number % len(rows)]["id"], column, values[choice % len(values)])
        self.reveal_everything()

    @rule(number=numbers, choice=numbers, url=st.sampled_from([None, URL, EVIL]), both=st.booleans())
    def downgrade(self, number: int, choice: int, url: str | None, both: bool) -> None:
        """Make a row look as if PulsePlan had written it."""
        self._remember()
        rows = self._rows()
        if rows:
            row_id = rows[number % len(rows)]["id"]
            old = self.old_ciphertexts
            for column, value in (
                ("access_token", old[choice % len(old)]),
                ("refresh_token", old[(choice + 2) % len(old)] if both else ""),
                ("encryption_scheme", None),
                ("metadata", "{}"),
                ("provider_url", url),
            ):
                self._set(row_id, column, value)
        self.reveal_everything()

    @rule(number=numbers, column=st.sampled_from(_SECRETS), at=st.integers(0, 10_000), bit=st.integers(0, 6))
    def flip(self, number: int, column: str, at: int, bit: int) -> None:
        self._remember()
        rows = self._rows()
        if rows and (text := rows[number % len(rows)][column]):
            at %= len(text)
            changed = text[:at] + chr(ord(text[at]) ^ (1 << bit)) + text[at + 1 :]
            self._set(rows[number % len(rows)]["id"], column, changed)
        self.reveal_everything()

    @rule(number=numbers)
    def delete_row(self, number: int) -> None:
        self._remember()
        rows = self._rows()
        if rows:
            self._database.execute("DELETE FROM oauth_tokens WHERE id = ?", (rows[number % len(rows)]["id"],))

    # the model

    def _require_place(self, asked: TokenId, revealed: RevealedToken) -> None:
        """Require that each secret is revealed where it belongs."""
        answer = Revealed.with_secrets(revealed, include_refresh=True)
        assert (answer.user_id, answer.provider, answer.service_type) == (
            asked.user_id,
            asked.provider,
            asked.service_type,
        )
        for secret, field in (
            (answer.access_token, SecretField.ACCESS_TOKEN),
            (answer.refresh_token, SecretField.REFRESH_TOKEN),
        ):
            if secret is None:
                continue
            if self.legacy and secret in self.old:
                assert self.old[secret] == asked.user_id, "an old secret is revealed to another user"
                continue
            assert secret in self.places, "a secret that no caller stored"
            assert Place(asked, field, answer.base_url) == self.places[secret], "a secret is revealed elsewhere"

    def _input(self, token_id: TokenId, base_url: str | Unset | None, *, has_refresh: bool) -> TokenInput:
        self._count += 1
        access, refresh = f"access {self._count}", f"refresh {self._count}"
        url = None if isinstance(base_url, Unset) else base_url
        self.places[access] = Place(token_id, SecretField.ACCESS_TOKEN, url)
        self.places[refresh] = Place(token_id, SecretField.REFRESH_TOKEN, url)
        return TokenInput(
            access_token=SecretStr(access),
            refresh_token=SecretStr(refresh) if has_refresh else UNSET,
            base_url=base_url,
        )

    def _is_legacy(self, token_id: TokenId) -> bool:
        """Return whether the access token of the row is in one of PulsePlan's formats."""
        for row in self._rows():
            if TokenId(row["user_id"], row["provider"], row["service_type"]) == token_id:
                with suppress(VaultError):
                    return family_of(row["access_token"]) is Family.PULSEPLAN_LOCAL
        return False

    def _vault(self, number: int) -> TokenVault:
        return self._vaults[number % len(self._vaults)]

    def _call(self, call: Coroutine[Any, Any, T]) -> T | None:
        """Return the result, `None` if the vault refused: a database may destroy."""
        self._remember()
        return self._run(call)

    def _run(self, call: Coroutine[Any, Any, T]) -> T | None:
        try:
            return self._runner.run(call)
        except VaultError:
            return None

    # the database

    def _rows(self) -> list[dict[str, Any]]:
        cursor = self._database.execute(f"SELECT {', '.join(COLUMNS)} FROM oauth_tokens ORDER BY id")  # noqa: S608  constants only
        return [dict(zip(COLUMNS, row, strict=True)) for row in cursor]

    def _remember(self) -> None:
        self.snapshots = (self.snapshots + self._rows())[-200:]

    def _set(self, row_id: str, column: str, value: Any) -> None:
        with suppress(apsw.ConstraintError):  # a token id that is taken, a column that must not be null
            self._database.execute(f"UPDATE oauth_tokens SET {column} = ? WHERE id = ?", (value, row_id))  # noqa: S608  a column's name


_OLD: dict[tuple[str, str], str] = {}


def _old_ciphertext(secret: str, user_id: str) -> str:
    """Return PulsePlan's ciphertext, made once because its key takes 20 ms to derive."""
    if (secret, user_id) not in _OLD:
        _OLD[secret, user_id] = legacy_ciphertext(secret, user_id)
    return _OLD[secret, user_id]
