"""A process that refreshes one token and stops at a point, to be killed or to go on.

    with refreshing(HERE, store=store, provider=provider, until="before the write", spool=folder) as process:
        process.reach()          # what comes before the point is done, and nothing of what follows
        process.kill()           # or process.proceed(), and then process.end()

The points lie in a gateway before the store, in the audit trail, and at the provider, whose `Answer` holds the request.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from app.composition.audit import build_events
from app.composition.encryption import build_encryption
from app.composition.providers import Providers, build_provider_registry, build_refresh_spool
from app.composition.stores import open_repository
from app.composition.vault import build_vault
from app.config.settings import Settings
from app.errors import VaultError
from app.refresh.provider_client import ProviderClient
from app.refresh.registry import ProviderRegistry
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvent
from app.tokens.models import Caller, TokenId
from app.tokens.repository import TokenRepository
from tests.support.process.prepared import forking
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.loopback import PLAIN_HTTP

if TYPE_CHECKING:  # the process imports little, so that it starts fast
    from tests.support.oauth.stand_in import OAuthStandIn
    from tests.support.stores.stores import Store

AT_THE_PROVIDER: Final = "at the provider"
_SECONDS: Final = 120.0  # ends a test that hangs
_REACHED: Final = "reached"
_CALLS: Final = {"get": "the read", "claim_refresh": "the claim", "settle_refresh": "the write"}


@dataclass(slots=True)
class RefreshingProcess:
    """The process, and the pipe to it."""

    process: BaseProcess
    pipe: Connection

    def reach(self) -> None:
        """Wait until the process has stopped at its point."""
        assert self.pipe.poll(_SECONDS)
        assert self.pipe.recv() == _REACHED

    def proceed(self) -> None:
        """Let it go on from its point."""
        self.pipe.send(None)

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.join(_SECONDS)
        assert self.process.exitcode == -signal.SIGKILL

    def end(self) -> str:
        """Return what its caller got: the access token, or the code of the error."""
        assert self.pipe.poll(_SECONDS)
        answer = self.pipe.recv()
        self.process.join(_SECONDS)
        assert self.process.exitcode == 0
        return str(answer)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refresh:
    """What the process is given."""

    settings: dict[str, str]
    lease_seconds: int
    token_id: TokenId
    until: str
    pipe: Connection


@contextmanager
def refreshing(
    token_id: TokenId,
    *,
    store: Store,
    provider: OAuthStandIn,
    until: str,
    spool: Path | None = None,
    lease_seconds: int = 180,
) -> Iterator[RefreshingProcess]:
    """Start a process that reveals the token, which has expired, and stops at the point `until`."""
    own, other = forking().Pipe()
    settings = {
        **store.environment(),
        "TOKEN_ENCRYPTION_KEY": MASTER_KEY,
        "OAUTH_PROVIDERS": json.dumps({"acme": provider.entry()}),
        **({} if spool is None else {"REFRESH_SPOOL_DIR": str(spool)}),
    }
    given = _Refresh(settings=settings, lease_seconds=lease_seconds, token_id=token_id, until=until, pipe=other)
    process = forking().Process(target=_run, args=(given,))
    process.start()
    other.close()
    try:
        yield RefreshingProcess(process, own)
    finally:
        process.kill()
        process.join()
        own.close()


def _run(given: _Refresh) -> None:
    asyncio.run(_reveal(given))


async def _reveal(given: _Refresh) -> None:
    async def arrive(point: str) -> None:
        if point == given.until:
            given.pipe.send(_REACHED)
            await asyncio.to_thread(given.pipe.recv)

    values: dict[str, Any] = {name.lower(): value for name, value in given.settings.items()}
    settings = Settings(_env_file=None, **values)  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`
    tokens = cast("TokenRepository", _HeldRepository(await open_repository(settings), arrive))
    cipher, events = TokenCipher(encryption=build_encryption(settings).service), build_events(_HeldTrail(arrive))
    registry = build_provider_registry(settings)
    assert registry is not None
    provider = registry.find(given.token_id.provider)
    assert provider is not None
    provider = replace(provider, lease_seconds=given.lease_seconds)
    providers = Providers(
        ProviderRegistry(providers=[provider]), ProviderClient(tls=PLAIN_HTTP), build_refresh_spool(settings)
    )
    recovery = providers.recovery(tokens=tokens, cipher=cipher, events=events)
    refresher = providers.refresher(tokens=tokens, cipher=cipher, events=events, recovery=recovery)
    vault = build_vault(tokens=tokens, cipher=cipher, events=events, refresher=refresher)
    try:
        revealed = await vault.reveal(given.token_id, caller=Caller("tests"))
        answer = revealed.access_token.get_secret_value()
    except VaultError as error:
        answer = error.code
    await refresher.close()
    await providers.client.close()
    await tokens.close()
    with suppress(BrokenPipeError):
        given.pipe.send(answer)


Arrive = Callable[[str], Awaitable[None]]


class _HeldRepository:
    def __init__(self, tokens: TokenRepository, arrive: Arrive) -> None:
        self._tokens = tokens
        self._arrive = arrive

    def __getattr__(self, name: str) -> Any:
        call, what = getattr(self._tokens, name), _CALLS.get(name, name)

        async def held_call(*arguments: Any, **named: Any) -> Any:
            await self._arrive(f"before {what}")
            result = await call(*arguments, **named)
            await self._arrive(f"after {what}")
            return result

        return held_call


class _HeldTrail(NoAuditTrail):
    def __init__(self, arrive: Arrive) -> None:
        self._arrive = arrive

    async def append(self, event: TokenEvent) -> None:
        what = "the intent" if event.outcome == "intent" else f"the outcome of the {event.operation}"
        await self._arrive(f"before {what}")
        await super().append(event)
        await self._arrive(f"after {what}")
