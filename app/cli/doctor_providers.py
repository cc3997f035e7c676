"""Findings of `token-vault doctor` about the OAuth providers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from app.cli.doctor_finding import DoctorFinding
from app.cli.providers import describe, provider_findings
from app.config.oauth_providers import load_provider_registry
from app.config.settings import Settings, SettingsError


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
