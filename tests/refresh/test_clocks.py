"""Replicas whose clocks disagree: docs/refresh.md says what that costs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.oauth.stand_in import OAuthStandIn, oauth_stand_in
from tests.support.refresh import replicas
from tests.support.stores.stores import SqliteStore

MINUTE = timedelta(minutes=1)


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


@pytest.mark.parametrize(("minutes", "covered"), [(4, True), (8, False)])
async def test_a_margin_covers_clocks_that_differ_by_less(
    tmp_path: Path, provider: OAuthStandIn, minutes: int, *, covered: bool
) -> None:
    """A fast clock writes the expiry and a slow one compares it; tokens live for an hour, and the margin is five."""
    async with (
        SqliteStore(tmp_path / "vault.db").open() as tokens,
        replicas(tokens, provider, count=2) as [fast, slow],
    ):
        fast.clock.passed += minutes * MINUTE
        await fast.store(refresh_token=provider.seed(), expires_at=fast.clock())
        first, age = await fast.reveal(), 0
        while await slow.reveal() == first:
            slow.clock.passed += MINUTE
            age += 1
        assert provider.refreshes == 2
        assert (age <= 60) is covered, "the provider ends it after an hour"


async def test_a_clock_that_is_hours_wrong_spends_no_token_twice(tmp_path: Path, provider: OAuthStandIn) -> None:
    """The lease is on the store's clock. The slow replica answers with what the fast one has stored."""
    async with (
        SqliteStore(tmp_path / "vault.db").open() as tokens,
        replicas(tokens, provider, count=4) as several,
    ):
        for replica, hours in zip(several, (-2, 0, 2, 2), strict=True):
            replica.clock.passed += timedelta(hours=hours)
        await several[1].store(refresh_token=provider.seed())
        for _ in range(3):
            await asyncio.gather(*(replica.reveal() for replica in several))
        assert len({await replica.reveal() for replica in several}) == 1
        assert (provider.refreshes, provider.reuses) == (1, 0)
