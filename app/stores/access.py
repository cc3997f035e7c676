"""Findings about access to `oauth_tokens` past the vault."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AccessFinding:
    """One route by which a role other than the vault's may reach the rows, as the database describes it.

    `kind` is one of the kinds that `token_vault_access_findings()` of the migrations has. `text` contains names from
    the database, which may hold any character.
    """

    kind: str
    text: str
