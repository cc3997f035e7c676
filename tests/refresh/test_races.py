"""Each call that changes a token, started between any two steps of its refresh, on every store.

A refresh token that the provider has replaced is lost to none of them, a store or a rotation wins over the refresh, and
nothing that was deleted comes back.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.errors import ProviderUnavailable, TokenNotFound
from app.tokens.models import RevealedToken, TokenId, TokenInput, TokenPatch
from app.tokens.repository import TokenRepository
from app.tokens.transitions import IN_FLIGHT_SECONDS
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.refresh import CALLER, Replica, replicas
from tests.support.stores.pausing import pausing
from tests.support.waiting import eventually_async

# the steps of docs/refresh.md: before or after a call of the store, or while the provider has the request
STEPS: Final = {
    "the row was read": ("get", "after"),
    "the intent was recorded": ("claim_refresh", "before"),
    "the lease was taken": ("claim_refresh", "after"),
    "the provider was asked": ("provider", "before"),
    "the refresh token was spent": ("provider", "after"),
    "the answer was encrypted": ("settle_refresh", "before"),
    "the answer was written": ("settle_refresh", "after"),
}


@dataclass(frozen=True, slots=True)
class Race:
    """Two replicas with one token that has expired: one refreshes it, the `other` changes it meanwhile."""

    refreshing: Replica
    other: Replica
    provider: OAuthStandIn
    token_id: TokenId

    async def patch(self) -> None:
        await self.other.vault.patch(self.token_id, TokenPatch(metadata={"course": 4}), caller=CALLER)

    async def rewrap(self) -> None:
        await self.other.vault.rewrap(self.token_id, caller=CALLER)

    async def store(self) -> None:
        await self.other.store(token_id=self.token_id, access_token="theirs", refresh_token=self.provider.seed())

    async def rotate(self) -> None:
        await self._rotate(refresh_token=SecretStr(self.provider.seed()))

    async def rotate_access_token(self) -> None:
        await self._rotate()

    async def delete(self) -> None:
        await self.other.vault.delete(self.token_id, caller=CALLER)

    async def erase(self) -> None:
        assert (await self.other.vault.delete_for_user(self.token_id.user_id, caller=CALLER)).deleted == 1

    async def _rotate(self, **given: Any) -> None:
        expires_at = self.other.clock() + timedelta(hours=1)
        rotated = TokenInput(access_token=SecretStr("theirs"), expires_at=expires_at, **given)
        await self.other.vault.rotate(self.token_id, rotated, caller=CALLER)

    async def require_alive(self) -> None:
        """Require that the stored refresh token is the provider's current one, and works."""
        assert self.provider.accepts(await self.other.refresh_token(self.token_id))
        row = await self.other.row(self.token_id)
        before, _ = await self.other.reveal(self.token_id, min_ttl_seconds=0)
        after, met = await self.other.reveal(self.token_id, rejected_version=row.version)
        assert (after != before, met, self.provider.reuses) == (True, True, 0)


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


@pytest.mark.parametrize("change", ["patch", "rewrap"])
async def test_no_patch_or_rewrap_loses_a_rotated_refresh_token(
    tokens: TokenRepository, provider: OAuthStandIn, change: str
) -> None:
    async for race, answer in _races(tokens, provider, change):
        assert isinstance(answer, RevealedToken), answer
        assert answer.access_token.get_secret_value() != "first"
        row = await race.other.row(race.token_id)
        assert row.metadata == ({"course": 4} if change == "patch" else {})
        await race.require_alive()


@pytest.mark.parametrize("change", ["store", "rotate", "rotate_access_token"])
async def test_a_store_or_rotation_wins_over_the_refresh(
    tokens: TokenRepository, provider: OAuthStandIn, change: str
) -> None:
    async for race, answer in _races(tokens, provider, change):
        assert isinstance(answer, RevealedToken), answer
        assert await race.other.reveal(race.token_id, min_ttl_seconds=0) == ("theirs", True)
        await race.require_alive()


@pytest.mark.parametrize("change", ["delete", "erase"])
async def test_nothing_deleted_during_a_refresh_comes_back(
    tokens: TokenRepository, provider: OAuthStandIn, change: str
) -> None:
    async for race, answer in _races(tokens, provider, change):
        assert isinstance(answer, TokenNotFound), answer
        assert await tokens.get(race.token_id) is None


async def test_no_refresh_spends_a_token_that_a_rotation_kept_in_flight(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    """Another refresh is asked for after a rotation without a refresh token, while the provider still has the first.

    The rotation comes twice, as from a caller that has lost the first answer.
    """
    release = threading.Event()
    provider.script(Answer(commits=True, hold=release))
    async with replicas(tokens, provider, count=2) as [refreshing, other]:
        race = Race(refreshing, other, provider, TokenId(str(uuid4()), "acme"))
        expired = other.clock() - timedelta(seconds=1)
        await other.store(token_id=race.token_id, refresh_token=provider.seed(), expires_at=expired)
        first = asyncio.create_task(refreshing.reveal(race.token_id))
        try:
            await eventually_async(lambda: len(provider.requests) == 1)
            await race.rotate_access_token()
            await race.rotate_access_token()
            version = (await other.row(race.token_id)).version
            with pytest.raises(ProviderUnavailable) as caught:
                await other.reveal(race.token_id, rejected_version=version)
            assert caught.value.retry_after_seconds <= IN_FLIGHT_SECONDS
            assert len(provider.requests) == 1
        finally:
            release.set()
        assert await first == ("theirs", True)
        await race.require_alive()


async def test_a_rotation_notices_a_refresh_that_began_after_its_read(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    """The refresh dies with the answer, so the row must show that the refresh token it keeps may be spent."""
    step = _Step("before")
    async with replicas(pausing(tokens, step, only="replace"), provider) as [other]:
        race = Race(other, other, provider, TokenId(str(uuid4()), "acme"))
        row = await other.store(token_id=race.token_id, refresh_token=provider.seed())

        async def claim() -> None:
            assert await tokens.claim_refresh(row, holder=str(uuid4()), lease_seconds=600)

        step.change = claim
        await race.rotate_access_token()
        state = (await other.row(race.token_id)).refresh_state
        assert (state.holder, state.failure) == (None, "answer_lost")


async def _races(
    tokens: TokenRepository, provider: OAuthStandIn, change: str
) -> AsyncIterator[tuple[Race, RevealedToken | BaseException]]:
    """Refresh a token of its own for each step, with the change at that step; yield what the refresh's caller gets."""
    for call, when in STEPS.values():
        step = _Step(when)
        stepping = tokens if call == "provider" else pausing(tokens, step, only=call)
        async with replicas(stepping, provider) as [refreshing], replicas(tokens, provider, key_version=2) as [other]:
            race = Race(refreshing, other, provider, TokenId(str(uuid4()), "acme"))
            expired = other.clock() - timedelta(seconds=1)
            await other.store(token_id=race.token_id, refresh_token=provider.seed(), expires_at=expired)
            await refreshing.vault.rewrap(race.token_id, caller=CALLER)
            make_change = getattr(race, change)
            if call == "provider":
                answer = await _reveal_while_the_provider_waits(
                    race, make_change, Answer(commits=True, late=when == "before")
                )
            else:
                step.change = make_change
                [answer] = await asyncio.gather(
                    refreshing.vault.reveal(race.token_id, caller=CALLER), return_exceptions=True
                )
                assert step.change is None, "the step was not reached"
            yield race, answer


async def _reveal_while_the_provider_waits(
    race: Race, change: Callable[[], Awaitable[None]], answer: Answer
) -> RevealedToken | BaseException:
    release, asked = threading.Event(), len(race.provider.requests)
    race.provider.script(replace(answer, hold=release))
    revealing = asyncio.create_task(race.refreshing.vault.reveal(race.token_id, caller=CALLER))
    try:
        await eventually_async(lambda: len(race.provider.requests) > asked)
        await change()
    finally:
        release.set()
        [answered] = await asyncio.gather(revealing, return_exceptions=True)
    return answered


class _Step:
    """A pause around calls of the store, in which `change` is made once: before the next call, or after it."""

    def __init__(self, when: str) -> None:
        self.change: Callable[[], Awaitable[None]] | None = None
        self._left = 1 if when == "before" else 2

    async def __call__(self) -> None:
        if self.change is None:
            return
        self._left -= 1
        if self._left == 0:
            change, self.change = self.change, None
            await change()
