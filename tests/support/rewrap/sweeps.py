"""Sweeps in the test's own process, and a table of five schemes for them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import pbkdf2_hmac
from itertools import product
from typing import Final
from uuid import UUID, uuid4

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.errors import VaultError
from app.rewrap.report import SweepReport
from app.rewrap.sweep import Sweep, SweepPlan
from app.security.context import SecretField
from app.security.encryption_service import EncryptionService
from app.security.keyring import decode_key_text
from app.security.schemes import scheme_of
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvent, TokenEvents
from app.tokens.repository import TokenRepository
from tests.support.rewrap.stored_rows import (
    KEYS,
    PostgresRows,
    Row,
    Rows,
    SqliteRows,
    access_of,
    key_settings,
    refresh_of,
)
from tests.support.stack.kms import Kms
from tests.support.stores.stores import PostgresStore, SqliteStore, Store, SupabaseStore, raw_row

_PULSEPLAN_USERS: Final = 8
_KMS_USERS: Final = 8


@dataclass(slots=True)
class Observed:
    """`SweepObserver` and `TokenObserver` that keep all they get."""

    unreadable_ids: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)
    on_progress: Callable[[SweepReport], None] = lambda _: None

    def progressed(self, report: SweepReport) -> None:
        self.on_progress(report)

    def unreadable(self, row_id: str, error: VaultError) -> None:  # noqa: ARG002  as a sweep calls it
        self.unreadable_ids.append(row_id)

    def waiting(self, error: VaultError, seconds: float) -> None:  # noqa: ARG002  as a sweep calls it
        self.waits.append(error.code)

    def record(self, event: TokenEvent) -> None:
        self.events.append(event)

    def record_many(self, events: Sequence[TokenEvent]) -> None:
        self.events.extend(events)


def sweep(
    tokens: TokenRepository,
    service: EncryptionService,
    *,
    observed: Observed | None = None,
    plan: SweepPlan | None = None,
) -> Sweep:
    """Return a sweep, of the whole table unless `plan` says otherwise."""
    observed = observed or Observed()
    return Sweep(
        tokens=tokens,
        cipher=TokenCipher(encryption=service),
        events=TokenEvents(audit=NoAuditTrail(), observers=[observed]),
        observer=observed,
        plan=plan or SweepPlan(rewrap_legacy=True),
    )


@asynccontextmanager
async def opened(rows: Rows) -> AsyncIterator[TokenRepository]:
    """Open the store that has these rows."""
    store: Store
    if isinstance(rows, SqliteRows):
        store = SqliteStore(rows.path)
    else:
        store = PostgresStore(rows.stack) if isinstance(rows, PostgresRows) else SupabaseStore(rows.stack)
    async with store.open() as tokens:
        yield tokens


def counts(report: SweepReport) -> dict[str, int | None]:
    """Return the report's counts."""
    return {
        "due": report.due,
        "rewrapped": report.rewrapped,
        "overtaken": report.overtaken,
        "unreadable": report.unreadable.total(),
        "in doubt": report.in_doubt,
        "remaining": report.remaining,
    }


def all_rewrapped(rows: int) -> dict[str, int | None]:
    """Return the counts of an undisturbed sweep of so many due rows."""
    return {"due": rows, "rewrapped": rows, "overtaken": 0, "unreadable": 0, "in doubt": 0, "remaining": 0}


def five_schemes(count: int, *, local: EncryptionService, kms: EncryptionService) -> list[Row]:
    """Return so many rows: an older master key, both of PulsePlan's local formats, KMS, and bound without a scheme.

    PulsePlan's formats and KMS cost something for each user, so few users have many of these tokens each.
    """
    each, rest = divmod(count, 5)
    pulseplans, kmss = [str(uuid4()) for _ in range(_PULSEPLAN_USERS)], [str(uuid4()) for _ in range(_KMS_USERS)]
    return [
        *(bound_row(local, str(uuid4()), 0) for _ in range(each + rest)),
        *(pulseplan_row(user, n, prefix="v1:") for n, user in _spread(each, pulseplans, 0)),
        *(pulseplan_row(user, n, prefix="") for n, user in _spread(each, pulseplans, 10_000)),
        *(bound_row(kms, user, n) for n, user in _spread(each, kmss, 0)),
        *(bound_row(local, str(uuid4()), 0) | {"encryption_scheme": None} for _ in range(each)),
    ]


def _spread(count: int, users: list[str], first: int) -> Iterator[tuple[int, str]]:
    numbers = range(first, first + count // len(users) + 1)
    for _, pair in zip(range(count), product(numbers, users), strict=False):
        yield pair


def bound_row(service: EncryptionService, user_id: str, number: int) -> Row:
    """Return a row as the vault writes it; every other one has no refresh token."""
    row_id = str(uuid4())
    where = {"provider": "google", "service_type": f"s{number}"}
    bound = {**where, "base_url": "https://canvas.example.edu"}
    access = service.encrypt_token(access_of(row_id), user_id, field=SecretField.ACCESS_TOKEN, **bound)
    refresh = None
    if UUID(row_id).int % 2:
        refresh = service.encrypt_token(refresh_of(row_id), user_id, field=SecretField.REFRESH_TOKEN, **bound)
    return raw_row(
        id=row_id,
        user_id=user_id,
        access_token=access,
        refresh_token=refresh,
        encryption_scheme=scheme_of(access),
        version=3,
        provider_url=bound["base_url"],
        **where,
    )


def pulseplan_row(user_id: str, number: int, *, prefix: str) -> Row:
    """Return a row as PulsePlan wrote it: no scheme, and an empty refresh token for none."""
    row_id = str(uuid4())
    refresh = pulseplan_ciphertext(refresh_of(row_id), user_id, prefix) if UUID(row_id).int % 2 else ""
    return raw_row(
        id=row_id,
        user_id=user_id,
        provider="google",
        service_type=f"s{number}",
        access_token=pulseplan_ciphertext(access_of(row_id), user_id, prefix),
        refresh_token=refresh,
        encryption_scheme=None,
    )


def pulseplan_ciphertext(plaintext: str, user_id: str, prefix: str) -> str:
    """Encrypt as PulsePlan does, under the first of the master keys."""
    iv = os.urandom(16)
    sealed = AESGCM(_pulseplan_key(user_id)).encrypt(iv, plaintext.encode(), None)
    return f"{prefix}{iv.hex()}:{sealed[-16:].hex()}:{sealed[:-16].hex()}"


def opened_as_pulseplan(ciphertext: str, user_id: str) -> str:
    """Decrypt as PulsePlan does; raises an exception if it is not in its format."""
    _, iv, tag, body = ciphertext.split(":")
    key = AESGCM(_pulseplan_key(user_id))
    return key.decrypt(bytes.fromhex(iv), bytes.fromhex(body) + bytes.fromhex(tag), None).decode()


@cache
def _pulseplan_key(user_id: str) -> bytes:
    return pbkdf2_hmac("sha256", decode_key_text(KEYS[1]), f"pulseplan:user:{user_id}:v1".encode(), 100_000, 32)


def what_it_held(row_id: str) -> tuple[str, str]:
    """Return the secrets of one of `five_schemes`' rows."""
    return access_of(row_id), refresh_of(row_id) if UUID(row_id).int % 2 else ""


def kms_settings(kms: Kms, *, primary: bool) -> dict[str, str]:
    """Return the settings of a process that reads KMS and both master keys, and writes under KMS or version 2."""
    return {**key_settings(2, 1), **kms.environment(), "USE_KMS": str(primary).lower()}


def count_of(rows: Rows) -> dict[str | None, int]:
    """Count the rows by scheme, in the database."""
    found: dict[str | None, int] = {}
    for row in rows.rows().values():
        found[row["encryption_scheme"]] = found.get(row["encryption_scheme"], 0) + 1
    return found
