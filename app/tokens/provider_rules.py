"""Provider rules: adjustments of a token before it is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from app.tokens.models import UNSET, TokenInput

CANVAS: Final = "canvas"
KNOWN_PROVIDERS: Final = (CANVAS, "apple", "gmail", "google", "microsoft", "notion", "outlook")  # PulsePlan's names
MANUAL_TOKEN_LIFETIME: Final = timedelta(days=120)

ProviderRule = Callable[[TokenInput, datetime], TokenInput]


def canvas_rule(given: TokenInput, now: datetime) -> TokenInput:
    """Set the expiry of a manual token (one without a refresh token) to 120 days from now, unless the caller gives one.

    Canvas ends access tokens that a user made by hand after at most 120 days.
    <https://developerdocs.instructure.com/services/canvas/oauth2/file.oauth#manual-token-generation>
    """
    manual = given.refresh_token is UNSET or given.refresh_token is None
    if manual and given.expires_at is UNSET:
        return replace(given, expires_at=now + MANUAL_TOKEN_LIFETIME)
    return given


PROVIDER_RULES: Final[Mapping[str, ProviderRule]] = {CANVAS: canvas_rule}
