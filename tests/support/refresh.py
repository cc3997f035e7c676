"""Replicas of a vault that refreshes: real encryption, a real store, and a provider over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp.abc import AbstractResolver
from pydantic import SecretStr

from app.errors import AuditUnavailable
from app.refresh.background import BackgroundRefresh
from app.refresh.exchange import CodeExchange
from app.refresh.lease import lease_clock
from app.refresh.observer import RefreshObserver
from app.refresh.refresher import TokenRefresher
from app.refresh.registry import ProviderRegistry
from app.refresh.revocation import LEASE_WAIT_SECONDS, TokenRevocation
from app.refresh.rounds import RefreshRounds
from app.refresh.spool import RefreshSpool
from app.refresh.spool_recovery import SpoolRecovery
from app.tokens.cipher import TokenCipher
from app.tokens.events import TokenEvent, TokenEvents
from app.tokens.models import UNSET, Caller, StoredToken, TokenId, TokenInput
from app.tokens.repository import TokenRepository
from app.tokens.reveals import RevealOptions
from app.tokens.vault import TokenVault
from tests.support.oauth.providers import provider_client, provider_of
from tests.support.oauth.stand_in import OAuthStandIn
from tests.support.rewrap.stored_rows import encryption, local_encryption
from tests.support.stack.loopback import PLAIN_HTTP

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
HERE = TokenId(USER, "acme")
CALLER = Caller("tests")


@dataclass(slots=True)
class RecordingTrail:
    """`AuditTrail` in memory, which refuses events while `refuses` is true."""

    kept: list[TokenEvent] = field(default_factory=list)
    refuses: bool = False

    def require_open(self) -> None: ...

    async def append(self, event: TokenEvent) -> None:
        if self.refuses:
            raise AuditUnavailable("the trail cannot be written")
        self.kept.append(event)

    async def append_many(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            await self.append(event)

    async def append_refusal(self, event: TokenEvent) -> None:
        self.kept.append(event)

    def outcomes(self, operation: str) -> list[str]:
        """Return the outcomes of the events of one operation, in order."""
        return [event.outcome for event in self.kept if event.operation == operation]


@dataclass(slots=True)
class Replica:
    """One process's vault, with its clock, which a test may move."""

    tokens: TokenRepository
    trail: RecordingTrail
    clock: Clock
    vault: TokenVault = field(init=False)
    refresher: TokenRefresher = field(init=False)
    exchange: CodeExchange = field(init=False)
    revocation: TokenRevocation = field(init=False)
    cipher: TokenCipher = field(init=False)
    recovery: SpoolRecovery | None = None

    async def store(self, *, token_id: TokenId = HERE, refresh_token: str | None, **given: Any) -> StoredToken:
        """Store an access token that expires in an hour unless `given` says otherwise."""
        given.setdefault("expires_at", self.clock() + timedelta(hours=1))
        token = TokenInput(
            access_token=SecretStr(given.pop("access_token", "first")),
            refresh_token=UNSET if refresh_token is None else SecretStr(refresh_token),
            **given,
        )
        return (await self.vault.store(token_id, token, caller=CALLER)).token

    async def reveal(self, token_id: TokenId = HERE, **options: Any) -> tuple[str, bool]:
        """Return the access token, and whether it lives long enough."""
        revealed = await self.vault.reveal(token_id, caller=CALLER, options=RevealOptions(**options))
        return revealed.access_token.get_secret_value(), revealed.min_ttl_met

    async def row(self, token_id: TokenId = HERE) -> StoredToken:
        row = await self.tokens.get(token_id)
        assert isinstance(row, StoredToken)
        return row

    async def refresh_token(self, token_id: TokenId = HERE) -> str:
        """Return the refresh token that is stored."""
        secrets = await self.cipher.open(await self.row(token_id))
        assert secrets.refresh is not None
        return secrets.refresh.get_secret_value()


class Clock:
    """The time of a replica: the machine's, plus what a test has let pass."""

    def __init__(self) -> None:
        self.passed = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.passed


@asynccontextmanager
async def replicas(
    tokens: TokenRepository,
    provider: OAuthStandIn | None,
    *,
    count: int = 1,
    registry: ProviderRegistry | None = None,
    resolver: AbstractResolver | None = None,
    key_version: int = 1,
    encryption_settings: Mapping[str, str] | None = None,
    trail: RecordingTrail | None = None,
    spool: Path | None = None,
    takeover_seconds: float = 0,
    monotonic: Callable[[], float] = lease_clock,
    total_seconds: float = 10.0,
    tls: Any = PLAIN_HTTP,
    lease_wait_seconds: float = LEASE_WAIT_SECONDS,
    observer: RefreshObserver | None = None,
    **entry: Any,
) -> AsyncIterator[list[Replica]]:
    """Run replicas over one store; `entry` changes the provider's entry in the registry, which replaces the provider.

    They encrypt with the key of this version and decrypt with each, unless there are other `encryption_settings`. They
    share the directory `spool`, and look at it
    only if a test calls `recovery.run_once`.
    """
    if registry is None:
        assert provider is not None
        registry = ProviderRegistry(providers=[provider_of(provider.entry(**entry))])
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            client = await stack.enter_async_context(
                provider_client(tls=tls, resolver=resolver, total_seconds=total_seconds, observer=observer)
            )
            replica = Replica(tokens=tokens, trail=trail or RecordingTrail(), clock=Clock())
            service = local_encryption(key_version) if encryption_settings is None else encryption(encryption_settings)
            replica.cipher = cipher = TokenCipher(encryption=service)
            events = TokenEvents(audit=replica.trail)
            if spool is not None:
                directory = RefreshSpool(spool)
                directory.prepare()
                replica.recovery = SpoolRecovery(
                    spool=directory,
                    tokens=tokens,
                    cipher=cipher,
                    events=events,
                    providers=registry,
                    observer=observer,
                )
            replica.refresher = TokenRefresher(
                tokens=tokens,
                cipher=cipher,
                events=events,
                providers=registry,
                client=client,
                spool=replica.recovery,
                observer=observer,
                takeover_seconds=takeover_seconds,
                monotonic=monotonic,
                now=replica.clock,
            )
            stack.push_async_callback(replica.refresher.close)
            replica.vault = TokenVault(
                tokens=tokens,
                cipher=cipher,
                events=events,
                refresher=replica.refresher,
                now=replica.clock,
                deadline_seconds=60,
            )
            replica.exchange = CodeExchange(
                vault=replica.vault,
                tokens=tokens,
                cipher=cipher,
                events=events,
                providers=registry,
                client=client,
                observer=observer,
                now=replica.clock,
            )
            stack.push_async_callback(replica.exchange.close)
            replica.revocation = TokenRevocation(
                tokens=tokens,
                cipher=cipher,
                events=events,
                providers=registry,
                client=client,
                now=replica.clock,
                lease_wait_seconds=lease_wait_seconds,
            )
            stack.push_async_callback(replica.revocation.close)
            found.append(replica)
        yield found


def background_of(
    replica: Replica,
    registry: ProviderRegistry,
    *,
    page_rows: int = 200,
    observer: RefreshObserver | None = None,
) -> BackgroundRefresh:
    """Return the background refresh of a replica, with an interval of a minute, which is not started."""
    rounds = RefreshRounds(
        tokens=replica.tokens,
        refresher=replica.refresher,
        providers=registry,
        caller=Caller("background"),
        observer=observer,
        page_rows=page_rows,
        now=replica.clock,
    )
    return BackgroundRefresh(rounds=rounds, interval_seconds=60)


async def settled(replica: Replica, token_id: TokenId = HERE) -> StoredToken:
    """Wait until nobody holds the lease of the token, and return its row."""
    while True:
        row = await replica.row(token_id)
        if row.refresh_state.holder is None:
            return row
        await asyncio.sleep(0.01)
