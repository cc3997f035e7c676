"""The window in which PulsePlan's formats are read: is it open without need, or closed too early?"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from app.errors import VaultError
from app.tokens.legacy_rows import is_legacy
from app.tokens.models import StoredToken
from app.tokens.repository import TokenRepository, pages

WINDOW_WITHOUT_NEED: Final = "ALLOW_LEGACY_FORMATS is true, and no row needs PulsePlan's formats: set it to false"
_START_SECONDS: Final = 2.0
_PAGE_ROWS: Final = 200
_MAXIMUM_ROWS: Final = 10_000
_log = structlog.get_logger()


async def window_problem(tokens: TokenRepository, *, allowed: bool) -> str | None:
    """Return why ALLOW_LEGACY_FORMATS, which is `allowed`, does not suit the rows; `None` if it does.

    Reads pages of the rows without a scheme, the only ones that need the window. Raises a `StoreError`.
    """
    needed = await _is_needed(tokens)
    if allowed and needed is False:
        return WINDOW_WITHOUT_NEED
    if needed and not allowed:
        return "rows in PulsePlan's formats cannot be read, because ALLOW_LEGACY_FORMATS is false"
    return None


async def warn_of_window(tokens: TokenRepository, *, allowed: bool) -> None:
    """Log the problem, if there is one; in bounded time, and silent if the store fails, which readiness reports."""
    try:
        async with asyncio.timeout(_START_SECONDS):
            problem = await window_problem(tokens, allowed=allowed)
    except (VaultError, TimeoutError):
        return
    if problem is not None:
        _log.warning("setting_is_weak", reason=problem)


async def _is_needed(tokens: TokenRepository) -> bool | None:
    """Return whether a legacy row is left; `None` if the pages that were read do not show it."""
    if None not in await tokens.schemes():
        return False
    looked_at = 0
    async for page in pages(tokens, None, rows=_PAGE_ROWS):
        if any(isinstance(row, StoredToken) and is_legacy(row) for row in page):
            return True
        looked_at += len(page)
        if looked_at >= _MAXIMUM_ROWS:
            return None
    return False
