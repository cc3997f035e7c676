"""Outages of providers, as the readiness check sees them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from app.errors import GrantRejected, ProviderMisconfigured, ProviderUnavailable, VaultError
from app.refresh.provider_outages import FORGOTTEN_SECONDS, ProviderOutages, providers_check
from app.refresh.providers import OAuthProvider
from app.refresh.registry import ProviderRegistry
from tests.support.oauth.providers import provider_of
from tests.support.security.clock import Clock

ACME = provider_of(
    {
        "token_url": "https://acme.example/token",
        "client_auth": "basic",
        "client_id": "a",
        "client_secret": "s",
        "rotation": "none",
    }
)
DOWN = ProviderUnavailable("acme answers with status 503", sent=True)
REFUSED = ProviderMisconfigured("acme refuses the client")


def _ask(outages: ProviderOutages, *outcomes: VaultError | None, provider: OAuthProvider = ACME) -> None:
    for outcome in outcomes:
        with suppress(VaultError), outages.observing(provider):
            if outcome is not None:
                raise outcome.copy()


async def test_three_failures_in_a_row_are_an_outage_until_an_answer() -> None:
    outages = ProviderOutages()
    check = providers_check(ProviderRegistry(providers=[ACME]), outages)
    _ask(outages, DOWN, REFUSED)
    await check()
    _ask(outages, DOWN)
    with pytest.raises(ProviderUnavailable):
        await check()
    # a refused token is an answer of a provider that works
    _ask(outages, GrantRejected("the user must sign in again", reason="invalid_grant"))
    await check()
    _ask(outages, DOWN, DOWN, None, DOWN, DOWN)
    await check()


async def test_an_error_that_concerns_one_token_is_no_outage() -> None:
    outages = ProviderOutages()
    _ask(outages, *[ProviderMisconfigured("the token has no base_url", concerns_provider=False)] * 5)
    await providers_check(ProviderRegistry(providers=[ACME]), outages)()


async def test_an_outage_ends_with_a_changed_entry_or_with_time() -> None:
    clock = Clock()
    outages = ProviderOutages(monotonic=clock)
    registry = ProviderRegistry(providers=[ACME])
    _ask(outages, REFUSED, REFUSED, REFUSED)
    assert isinstance(outages.current(registry), ProviderMisconfigured)
    assert outages.current(ProviderRegistry(providers=[replace(ACME, client_id="corrected")])) is None
    _ask(outages, DOWN, DOWN, DOWN)
    clock.advance(FORGOTTEN_SECONDS + 1)
    assert outages.current(registry) is None
