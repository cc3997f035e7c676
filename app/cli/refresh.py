"""`token-vault refresh`: refresh the tokens that are due, and report the result as text and exit code."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from typing import Any, Final

import click

from app.cli.errors import UsageError, settings_or_stop
from app.cli.output import counted_noun, print_table
from app.cli.signals import first_signal
from app.cli.store import opened_store
from app.composition.audit import open_audit
from app.composition.encryption import build_encryption
from app.composition.providers import opened_providers
from app.concurrency import all_of
from app.config.settings import Settings, SettingsError
from app.errors import StoreError
from app.observability.logging import configure_command_logging
from app.refresh.refresher import TokenRefresher
from app.refresh.registry import ProviderRegistry
from app.refresh.rounds import RefreshRounds, RoundPlan, RoundReport
from app.security.encryption_service import EncryptionService
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import Caller

ALL_REFRESHED, SOME_FAILED, UNFINISHED = 0, 1, 2
SERVICE: Final = "refresh-command"
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST_SECONDS: Final = 366 * 86_400
_TICK_SECONDS: Final = 0.2
_TURN_SECONDS: Final = 1.0
_BETWEEN_LINES_SECONDS: Final = 5.0
_CLEAR_LINE: Final = "\r\x1b[K"


@click.command()
@click.option(
    "--due-within",
    "due_within",
    default="1h",
    show_default=True,
    metavar="TIME",
    help="Refresh what expires within this time, like 90s, 30m, 1h or 2d.",
)
@click.option("--provider", metavar="P", help="Only this provider's tokens, like google, with its other names.")
@click.option("--dry-run", is_flag=True, help="Count the tokens that are due, and ask no provider.")
def refresh(due_within: str, provider: str | None, dry_run: bool) -> None:  # noqa: FBT001  click's way
    """Refresh the tokens that are due, at their providers, while the service runs.

    A token is due if it expires within --due-within, or, without an expiry, after its provider's default lifetime; and
    if its refresh token was not used for half of the days after which its provider ends it. Where a refresh ends the
    old access token, a token is due once it has expired. A token whose refresh failed is due at its next attempt.

    Safe at any time: it may be stopped, started again, and run several times at once, also beside
    REFRESH_INTERVAL_SECONDS. Progress goes to standard error, the summary to standard output.

    Exit codes: 0 every due token was refreshed (with --dry-run: counted), 1 some were not, 2 it ended before the last
    token (by a signal or an error of the store), or an option or a setting is wrong.
    """
    plan = RoundPlan(lead_seconds=_parse_time(due_within), min_ttl_seconds=0, dry_run=dry_run)
    settings = settings_or_stop()
    configure_command_logging()
    try:
        encryption = build_encryption(settings)
        with closing(encryption):
            reports, reason = asyncio.run(_refresh(settings, encryption.service, plan, provider))
    except SettingsError as error:
        raise UsageError(str(error)) from None
    _print_summary(reports, dry_run=dry_run)
    sys.exit(_conclude(reports.values(), reason, dry_run=dry_run))


def _parse_time(text: str) -> int:
    parsed = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(parsed[1]) * _UNIT_SECONDS[parsed[2]] if parsed else -1
    if not 0 <= seconds <= _LONGEST_SECONDS:
        raise UsageError("--due-within must be a time of at most 366 days, like 90s, 30m, 1h or 2d")
    return seconds


async def _refresh(
    settings: Settings, encryption: EncryptionService, plan: RoundPlan, only: str | None
) -> tuple[dict[str, RoundReport], str | None]:
    """Run the rounds; return their reports by provider's name, and the reason why they ended early, if they did."""
    stop = first_signal()
    async with opened_providers(settings) as providers, opened_store(settings) as tokens:
        if providers is None:
            raise UsageError("no OAuth provider is configured: set OAUTH_PROVIDERS_FILE")
        audit = NoAuditTrail() if plan.dry_run else await open_audit(settings)
        # without the log observer: one line for each token would bury the summary
        events, cipher = TokenEvents(audit=audit), TokenCipher(encryption=encryption)
        recovery = providers.recovery(tokens=tokens, cipher=cipher, events=events)
        refresher = providers.refresher(tokens=tokens, cipher=cipher, events=events, recovery=recovery)
        rounds = providers.rounds(tokens=tokens, refresher=refresher, caller=Caller(SERVICE))
        reports = {name: RoundReport() for name in _selected(rounds, providers.registry, only)}
        try:
            async with _shown(reports):
                reason, late = await _run(rounds, refresher, plan, reports, stop)
        finally:
            await refresher.close()
            await audit.close()
    if late:
        unstored = f"{counted_noun(late, 'answer')} of a provider could not be stored"
        reason = f"{reason}, and " * (reason is not None) + unstored
    return reports, reason


def _selected(rounds: RefreshRounds, registry: ProviderRegistry, only: str | None) -> list[str]:
    names = rounds.names()
    if only is None:
        return names
    entry = registry.find(only)
    if entry is None:
        raise UsageError(f"--provider: there is no entry for it; the providers are {', '.join(registry.names())}")
    return [name for name in names if registry.find(name) == entry]


async def _run(
    rounds: RefreshRounds,
    refresher: TokenRefresher,
    plan: RoundPlan,
    reports: dict[str, RoundReport],
    stop: asyncio.Future[str],
) -> tuple[str | None, int]:
    """Run the rounds of every name at once, for tokens whose last refresh failed too, and end their refreshes.

    Returns the reason why they ended early, if they did, and the number of refreshes that could not end.
    """
    kinds = (plan, replace(plan, failed=True))
    running = asyncio.ensure_future(
        all_of(rounds.run(name, kind, report) for name, report in reports.items() for kind in kinds)
    )
    ends: list[asyncio.Future[Any]] = [running, stop]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    rounds.stop()
    late = await refresher.close()
    await asyncio.wait([running], timeout=_TURN_SECONDS)
    if not running.done():  # it waits for its turn at a provider
        running.cancel()
        await asyncio.wait([running])
    if stop.done():
        return f"{stop.result()} stopped it", late
    error = running.exception()
    if isinstance(error, StoreError):
        return f"{error.code}: {error.detail}; see `token-vault doctor`", late
    if error is not None:
        raise error
    return None, late


@asynccontextmanager
async def _shown(reports: dict[str, RoundReport]) -> AsyncIterator[None]:
    """Show progress on standard error: one line that is redrawn on a terminal, otherwise a line every few seconds."""
    live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    async def show() -> None:
        next_line_at = time.monotonic() + _BETWEEN_LINES_SECONDS
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            line = _line(reports.values())
            if live:
                click.echo(_CLEAR_LINE + line, nl=False, err=True, color=True)
            elif time.monotonic() >= next_line_at:
                next_line_at = time.monotonic() + _BETWEEN_LINES_SECONDS
                click.echo(line, err=True)

    showing = asyncio.create_task(show())
    try:
        yield
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
        if live:
            click.echo(_CLEAR_LINE, nl=False, err=True, color=True)


def _line(reports: Iterable[RoundReport]) -> str:
    due, refreshed, failed = (
        sum(counts) for counts in zip(*((r.due, r.refreshed, r.failed.total()) for r in reports), strict=True)
    )
    return f"{due:,} due, {refreshed:,} refreshed, {failed:,} failed"


def _print_summary(reports: dict[str, RoundReport], *, dry_run: bool) -> None:
    rows: list[tuple[str, ...]] = [("provider", "due") if dry_run else ("provider", "due", "refreshed", "failed", "")]
    for name, report in reports.items():
        rows.append((name, f"{report.due:,}") if dry_run else (name, f"{report.due:,}", *_result(report)))
    print_table(rows, right=[1, 2, 3])


def _result(report: RoundReport) -> tuple[str, str, str]:
    notes = [f"{code} {count:,}" for code, count in sorted(report.failed.items())]
    if report.overtaken:
        notes.append(f"overtaken {report.overtaken:,}")
    if report.api_tokens:
        notes.append(f"{counted_noun(report.api_tokens, 'API token')}, which nobody refreshes")
    if report.paused is not None:
        notes.append(f"the others were not tried: {report.paused.code}: {report.paused.detail}")
    return f"{report.refreshed:,}", f"{report.failed.total():,}", ", ".join(notes)


def _conclude(reports: Iterable[RoundReport], reason: str | None, *, dry_run: bool) -> int:
    """Print what the counts mean, and return the exit code."""
    if reason is not None:
        click.echo(f"\nNot finished: {reason}. Run it again: refreshed tokens are no longer due.")
        return UNFINISHED
    if dry_run:
        click.echo("\nNothing was asked or written.")
        return ALL_REFRESHED
    failed: Counter[str] = sum((report.failed for report in reports), Counter())
    if failed or any(report.paused is not None for report in reports):
        click.echo("\nSome tokens were not refreshed. Their rows and the audit trail say why: docs/refresh.md")
        return SOME_FAILED
    click.echo("\nEvery token that was due is refreshed.")
    return ALL_REFRESHED
