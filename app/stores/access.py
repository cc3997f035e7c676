"""Findings about access to `oauth_tokens` past the vault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class AccessFinding:
    """One route by which a role other than the vault's may reach the rows, as the database describes it.

    `kind` is one of the kinds that `token_vault_access_findings()` of the migrations has. `text` contains names from
    the database, which may hold any character.
    """

    kind: str
    text: str


@runtime_checkable
class ReportsAccess(Protocol):
    """A store in PostgreSQL."""

    async def access_findings(self) -> list[AccessFinding]:
        """Return what in the database lets other roles than the vault's reach the rows; empty if nothing does."""
        ...
