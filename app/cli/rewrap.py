"""`token-vault rewrap`: run a sweep, show its progress, and report its result as text and exit code."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Final

import click

from app.cli.errors import UsageError, settings_or_stop
from app.cli.rewrap_progress import TICK_SECONDS, SweepProgress, print_summary
from app.cli.signals import first_signal
from app.cli.store import opened_store
from app.composition.audit import open_audit
from app.composition.encryption import build_encryption
from app.config.settings import Settings, SettingsError
from app.errors import VaultError
from app.observability.logging import configure_command_logging
from app.rewrap.key_ranges import Shard
from app.rewrap.report import SweepReport
from app.rewrap.sweep import Sweep, SweepPlan
from app.security.encryption_service import EncryptionService
from app.tokens.cipher import TokenCipher
from app.tokens.events import AuditTrail, NoAuditTrail, TokenEvents
from app.tokens.models import SLUG_PATTERN

NOTHING_LEFT, UNREADABLE, UNFINISHED = 0, 1, 2
_MANUAL: Final = "docs/key-rotation.md"


@click.command()
@click.option("--dry-run", is_flag=True, help="Decrypt every token that is due, and write nothing.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N rewrapped rows.")
@click.option("--rate", type=click.IntRange(1), metavar="N", help="At most N rows a second.  [default: no limit]")
@click.option(
    "--shard", "shard_text", metavar="I/N", help="Rewrap only part I of N, so that N commands can share the table."
)
@click.option("--provider", metavar="P", help="Only this provider's tokens, like canvas.")
@click.option(
    "--timeout", "timeout_seconds", type=click.IntRange(1), metavar="SECONDS", help="Stop after this many seconds."
)
def rewrap(  # noqa: PLR0917  click passes each by its name
    dry_run: bool,  # noqa: FBT001  click's way
    limit: int | None,
    rate: int | None,
    shard_text: str | None,
    provider: str | None,
    timeout_seconds: int | None,
) -> None:
    """Rewrap every token under the primary key, while the service runs.

    Tokens in PulsePlan's formats are rewrapped too. PulsePlan's own service cannot read them afterwards; a notice says
    so before the first one is rewrapped.

    Safe at any time: it may be stopped, killed, started again, and run several times at once. Progress goes to standard
    error; unreadable rows, which stay as they are, and the summary go to standard output.

    Exit codes: 0 no row is left under another key (of --provider and --shard, if given; with --dry-run: every due row
    can be read), 1 some rows are unreadable, 2 it ended before the last row (also by --limit, --timeout or a signal),
    or an option or a setting is wrong.
    """
    if provider is not None and not re.fullmatch(SLUG_PATTERN, provider):
        raise UsageError(f"--provider must match {SLUG_PATTERN}")
    plan = SweepPlan(
        provider=provider,
        shard=_parse_shard(shard_text),
        limit=limit,
        rows_per_second=rate,
        dry_run=dry_run,
        deadline_seconds=timeout_seconds,
        rewrap_legacy=True,
    )
    settings = settings_or_stop()
    configure_command_logging()
    try:
        encryption = build_encryption(settings)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    with closing(encryption):
        report, reason = asyncio.run(_sweep(settings, encryption.service, plan))
    print_summary(report, plan)
    sys.exit(_conclude(report, plan, reason))


def _parse_shard(text: str | None) -> Shard | None:
    try:
        return None if text is None else Shard.parse(text)
    except ValueError as error:
        raise UsageError(f"--shard {error}") from None


async def _sweep(settings: Settings, encryption: EncryptionService, plan: SweepPlan) -> tuple[SweepReport, str | None]:
    """Run the sweep; return its report and the reason why it ended early, if it did."""
    progress = SweepProgress(plan, legacy_opens=settings.allow_legacy_formats)
    signal_name = first_signal()
    async with opened_store(settings) as tokens, _opened_audit(settings, plan) as audit:
        # without the log observer: failures are printed, and one line for each success would bury them
        sweep = Sweep(
            tokens=tokens,
            cipher=TokenCipher(encryption=encryption),
            events=TokenEvents(audit=audit),
            observer=progress,
            plan=plan,
        )
        signal_name.add_done_callback(lambda name: sweep.stop(f"{name.result()} stopped it"))
        async with _shown(progress):
            try:
                report = await sweep.run()
            except VaultError as error:
                reason = f"{error.code}: {error.detail}; see `token-vault doctor`"
                if progress.report is None:
                    raise UsageError(reason) from None
                return progress.report, reason
    return report, report.stopped


@asynccontextmanager
async def _opened_audit(settings: Settings, plan: SweepPlan) -> AsyncIterator[AuditTrail]:
    """Open the audit trail; a dry run leaves no event."""
    audit = NoAuditTrail() if plan.dry_run else await open_audit(settings)
    try:
        yield audit
    finally:
        await audit.close()


@asynccontextmanager
async def _shown(progress: SweepProgress) -> AsyncIterator[None]:
    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            progress.tick()

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        progress.close()


def _conclude(report: SweepReport, plan: SweepPlan, reason: str | None) -> int:
    """Print what the counts mean, and return the exit code."""
    if plan.dry_run and report.stopped is not None and report.due is not None and report.tried >= report.due:
        reason = None  # stopped after the last row
    if reason is None and plan.dry_run and not report.unreadable:
        click.echo("\nEvery due row can be read. Nothing was written.")
        return NOTHING_LEFT
    if not plan.dry_run and report.remaining == 0:
        click.echo(f"\nDone. {_nothing_left(plan)}")
        return NOTHING_LEFT
    if reason is None and report.unreadable:
        click.echo(f"\nUnreadable rows stay as they are. What to do about them: {_MANUAL}")
        return UNREADABLE
    if reason is None and plan.shard is not None:
        left = "An unknown number of rows is" if report.remaining is None else f"{report.remaining:,} rows are"
        click.echo(
            f"\nShard {plan.shard} is done. {left} left under another key in all shards: "
            "retire no key before a run without --shard."
        )
        return NOTHING_LEFT
    reason = reason or ("others wrote under another key" if report.remaining else "the rows could not be counted")
    then = "Nothing was written." if plan.dry_run else "Run it again: rewrapped rows stay rewrapped."
    click.echo(f"\nNot finished: {reason}. {then}")
    return UNFINISHED


def _nothing_left(plan: SweepPlan) -> str:
    if plan.provider is None:
        return "Nothing is left under another key."
    return (
        f"No token of {plan.provider} is left under another key. Other providers were not looked at: "
        "retire no key before a run without --provider."
    )
