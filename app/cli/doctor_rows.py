"""Findings about rows that something else than the vault wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from app.cli.doctor_finding import DoctorFinding
from app.cli.output import counted_noun
from app.composition.stores import opened_repository
from app.config.settings import Settings, SettingsError
from app.errors import VaultError
from app.tokens.models import StoredToken
from app.tokens.repository import pages

MAXIMUM_ROWS: Final = 10_000  # a table of millions must not hold up the command
_NAMED_ROWS: Final = 3


def row_findings(settings: Settings) -> Iterator[DoctorFinding]:
    """Report rows whose callers get null in place of a base URL, unless the store cannot be read."""
    try:
        row_ids, looked_at = asyncio.run(_rows_with_invalid_url(settings))
    except (VaultError, SettingsError):
        return
    if not row_ids:
        return
    among = f" among the first {looked_at:,} that the vault did not write" if looked_at >= MAXIMUM_ROWS else ""
    named = ", ".join(row_ids[:_NAMED_ROWS]) + (", …" if len(row_ids) > _NAMED_ROWS else "")
    yield DoctorFinding.warning(
        "store",
        f"{counted_noun(len(row_ids), 'token')}{among} with a base URL that is no https URL, so callers get null: "
        f"correct the row before a rewrap binds its URL, or rotate with a base_url (row ids: {named})",
    )


async def _rows_with_invalid_url(settings: Settings) -> tuple[list[str], int]:
    """Return the ids of such rows among those without a scheme, and how many rows were looked at."""
    found: list[str] = []
    looked_at = 0
    if settings.token_store == "sqlite" and not settings.sqlite_path.exists():  # noqa: S105  a store's name
        return found, looked_at
    async with opened_repository(settings) as tokens:
        async for page in pages(tokens, None, rows=1_000):
            looked_at += len(page)
            rows = (row for row in page if isinstance(row, StoredToken))
            found += [row.id for row in rows if row.base_url is not None and row.valid_base_url is None]
            if looked_at >= MAXIMUM_ROWS:
                break
    return found, looked_at
