"""`token-vault providers`: list and check the OAuth providers whose tokens the vault refreshes."""

from __future__ import annotations

import asyncio
import sys

import click

from app.cli.errors import UsageError, settings_or_stop
from app.cli.output import AS_JSON, print_json, print_table
from app.config.certificate_authorities import client_ssl_context
from app.config.oauth_providers import load_provider_registry
from app.config.settings import Settings, SettingsError
from app.observability.logging import configure_command_logging
from app.refresh.provider_check import ProviderFinding, check_provider
from app.refresh.provider_connection import ProviderConnections
from app.refresh.providers import OAuthProvider
from app.refresh.registry import ProviderRegistry


@click.group()
def providers() -> None:
    """List and check the OAuth providers whose tokens the vault refreshes: the entries of OAUTH_PROVIDERS_FILE."""


@providers.command("list", short_help="List the configured providers.")
@AS_JSON
def list_providers(*, as_json: bool) -> None:
    """List the configured providers with what is known of their tokens. Contacts nothing and prints no secret.

    Exit codes: 0 listed, 2 a setting or an entry is wrong.
    """
    registry = _registry(settings_or_stop())
    configure_command_logging()  # the lines below are the output
    if as_json:
        print_json([_members(provider) for provider in _providers(registry)])
        return
    if not registry.names():
        click.echo("No OAuth provider is configured, so no token is refreshed.")
        return
    header = ("provider", "host", "client", "secrets", "refresh token", "unused after")
    print_table([header, *(_row(provider) for provider in _providers(registry))])


@providers.command(short_help="Check entries, host names, TLS and discovery.")
@AS_JSON
def check(*, as_json: bool) -> None:
    """Check every entry, that its hosts resolve to public addresses and offer TLS, and its discovery document.

    Sends no secret and no token, so it spends nothing. Of a provider with many hosts, 20 are checked.

    Exit codes: 0 everything is as it should be, 1 a provider has a problem, 2 a setting or an entry is wrong.
    """
    registry = _registry(settings_or_stop())
    configure_command_logging()  # the lines below are the output
    for warning in registry.warnings():
        click.echo(f"Warning: {warning}", err=True)
    findings = asyncio.run(provider_findings(registry))
    if as_json:
        print_json([{"provider": name, "checked": one.text, "problem": one.problem} for name, one in findings])
    else:
        for name, finding in findings:
            click.echo(f"{'ok  ' if finding.problem is None else 'FAIL'}  {name}: {describe(finding)}")
    failed = any(finding.problem is not None for _, finding in findings)
    sys.exit(1 if failed else 0)


async def provider_findings(registry: ProviderRegistry) -> list[tuple[str, ProviderFinding]]:
    """Return the findings of every provider, with its name."""
    connections = ProviderConnections(tls=client_ssl_context())
    try:
        return [
            (provider.name, finding)
            for provider in _providers(registry)
            async for finding in check_provider(provider, connections)
        ]
    finally:
        await connections.close()


def describe(finding: ProviderFinding) -> str:
    return finding.text if finding.problem is None else f"{finding.text}: {finding.problem}"


def _registry(settings: Settings) -> ProviderRegistry:
    try:
        return load_provider_registry(settings)
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _providers(registry: ProviderRegistry) -> list[OAuthProvider]:
    return [provider for name in registry.names() if (provider := registry.find(name)) is not None]


def _hosts(provider: OAuthProvider) -> list[str]:
    return sorted(provider.allowed_hosts) if provider.token_url is None else [provider.token_url.split("/")[2]]


def _members(provider: OAuthProvider) -> dict[str, object]:
    return {
        "provider": provider.name,
        "hosts": _hosts(provider),
        "client_auth": provider.client_auth.value,
        "secrets": len(provider.client_secrets),
        "rotation": provider.rotation.value,
        "idle_days": provider.idle_days,
    }


def _row(provider: OAuthProvider) -> tuple[str, ...]:
    places = _hosts(provider)
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return (
        provider.name,
        f"{places[0]}{more}",
        provider.client_auth.value,
        str(len(provider.client_secrets)),
        provider.rotation.value,
        "-" if provider.idle_days is None else f"{provider.idle_days} days",
    )
