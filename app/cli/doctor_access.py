"""Findings about access to `oauth_tokens` in PostgreSQL, on both stores that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from app.cli.doctor_finding import DoctorFinding
from app.composition.stores import opened_repository
from app.config.settings import Settings
from app.errors import StoreError
from app.stores.access import AccessFinding, ReportsAccess

_SUBJECT: Final = "store"
_MIGRATE: Final = "run `token-vault migrate --again`, which takes it away"
_FAILURES: Final = {
    "privilege": _MIGRATE,
    "policy": _MIGRATE,
    "row_security": "run `token-vault migrate --again`, which turns it on",
    "indirect_privilege": "revoke the membership, or the privilege of that role",
    "membership": "revoke the membership",
    "inheritance": "alter table … no inherit",
    "marker": "run `token-vault migrate --again`, which creates it",
}
_WARNINGS: Final = {
    "grant": "revoke it unless that role must have it",
    "vault_member": "revoke the membership unless the vault itself logs in with that role",
    "view": "drop it, or alter view … set (security_invoker = true)",
    "function": "drop it, or revoke execute from these roles",
    "trigger": "the vault has no such trigger or rule, and it acts on every write; drop it unless you know it",
    "role": "see migrations/README.md, The role token_vault",
}


def access_findings(settings: Settings) -> Iterator[DoctorFinding]:
    """Report which roles other than the vault's reach the rows, and what acts on the table besides the vault."""
    try:
        findings = asyncio.run(_read(settings))
    except StoreError as error:
        yield DoctorFinding.warning(_SUBJECT, f"privileges were not checked: {error.detail}")
        return
    for finding in findings:
        yield _judged(finding)
    if not findings:
        yield DoctorFinding.ok(
            _SUBJECT, "no role but the owner, service_role and token_vault has or inherits a privilege on oauth_tokens"
        )


async def _read(settings: Settings) -> list[AccessFinding]:
    async with opened_repository(settings) as tokens:
        return await tokens.access_findings() if isinstance(tokens, ReportsAccess) else []


def _judged(finding: AccessFinding) -> DoctorFinding:
    text = "".join(one if one.isprintable() else "?" for one in finding.text)
    if finding.kind in _FAILURES:
        return DoctorFinding.failure(_SUBJECT, f"{text}: {_FAILURES[finding.kind]}")
    return DoctorFinding.warning(_SUBJECT, f"{text}: {_WARNINGS.get(finding.kind, 'see migrations/README.md')}")
