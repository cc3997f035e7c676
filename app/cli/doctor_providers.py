"""Findings of `token-vault doctor` about the OAuth providers and the spool of their refreshes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from app.cli.doctor_finding import DoctorFinding
from app.cli.providers import describe, provider_findings
from app.config.oauth_providers import load_provider_registry
from app.config.settings import Settings, SettingsError
from app.refresh.spool import RefreshSpool, SpoolError, require_private


def oauth_findings(settings: Settings) -> Iterator[DoctorFinding]:
    """Yield a finding for each endpoint of each provider; none if no provider is configured."""
    subject = "providers"
    try:
        registry = load_provider_registry(settings)
    except SettingsError as error:
        yield DoctorFinding.failure(subject, str(error))
        return
    if not registry.names():
        return
    for warning in registry.warnings():
        yield DoctorFinding.warning(subject, warning)
    for name, finding in asyncio.run(provider_findings(registry)):
        of = DoctorFinding.ok if finding.problem is None else DoctorFinding.failure
        yield of(subject, f"{name}: {describe(finding)}")


def spool_findings(directory: Path) -> Iterator[DoctorFinding]:
    """Yield whether REFRESH_SPOOL_DIR can be used, and what lies in it."""
    subject = "spool"
    if not directory.exists():
        yield DoctorFinding.ok(subject, f"{directory} does not exist yet; the first start creates it")
        return
    try:
        require_private(directory)
        spool = RefreshSpool(directory)
        contents = spool.contents()
        damaged = sum(asyncio.run(_is_damaged(spool, holder)) for holder in contents.holders)
    except SpoolError as error:
        yield DoctorFinding.failure(subject, f"REFRESH_SPOOL_DIR: {directory}: {error}")
        return
    except OSError as error:
        yield DoctorFinding.failure(subject, f"REFRESH_SPOOL_DIR: {directory}: {error.strerror}")
        return
    yield DoctorFinding.ok(subject, f"{directory} is private")
    if unwritten := len(contents.holders) - damaged:
        text = f"{unwritten} refreshes are not stored yet: a running vault stores them within seconds, or logs why not"
        yield DoctorFinding.warning(subject, text)
    if damaged:
        text = f"{damaged} files are damaged, or another version wrote them: no vault stores them; delete them"
        yield DoctorFinding.warning(subject, text)
    if contents.foreign:
        yield DoctorFinding.warning(subject, f"{len(contents.foreign)} files are not the vault's: move them away")


async def _is_damaged(spool: RefreshSpool, holder: str) -> bool:
    try:
        async with spool.opened(holder) as file:
            if file is not None:
                file.result()
    except SpoolError:
        return True
    return False
