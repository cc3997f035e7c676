"""`token-vault rewrap`: the sweep, with a person or a script in front of it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from typing import Final

import click

from app.cli.errors import UsageError, settings_or_stop
from app.cli.rewrap_progress import TICK_SECONDS, SweepProgress, print_summary
from app.cli.store import opened_store
from app.composition import build_encryption, open_audit
from app.config.settings import Settings, SettingsError
from app.errors import InternalError, VaultError
from app.observability.logging import configure_command_logging
from app.reseal_process import COMMAND, first_line
from app.rewrap.report import SweepReport
from app.rewrap.resealer import Resealer
from app.rewrap.resealing_here import ResealerHere
from app.rewrap.resealing_processes import ResealerProcesses
from app.rewrap.sweep import Sweep, SweepPlan
from app.security.service import EncryptionService
from app.server.workers import open_variables
from app.tokens.cipher import TokenCipher
from app.tokens.events import AuditTrail, NoAuditTrail, TokenEvents
from app.tokens.models import SLUG_PATTERN

NOTHING_LEFT, UNREADABLE, UNFINISHED = 0, 1, 2
MAXIMUM_PROCESSES: Final = 16  # the pages that are under way at once have no work for more
_MANUAL: Final = "docs/key-rotation.md"


@click.command()
@click.option("--dry-run", is_flag=True, help="Open every token that would be moved, and write nothing.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop when this many rows are moved.")
@click.option(
    "--rate", type=click.IntRange(1), metavar="N", help="Rows a second at most.  [default: as fast as it goes]"
)
@click.option(
    "--processes",
    type=click.IntRange(1, MAXIMUM_PROCESSES),
    default=1,
    show_default=True,
    metavar="N",
    help="Decrypt and encrypt in this many processes: one for each core, where KMS is asked.",
)
@click.option("--provider", metavar="P", help="Only this provider's tokens, like canvas.")
@click.option(
    "--timeout", "timeout_seconds", type=click.IntRange(1), metavar="SECONDS", help="Stop after this many seconds."
)
def rewrap(  # noqa: PLR0917  click gives each by its name
    dry_run: bool,  # noqa: FBT001  click's way
    limit: int | None,
    rate: int | None,
    processes: int,
    provider: str | None,
    timeout_seconds: int | None,
) -> None:
    """Move every token to the current key, while the service runs.

    Safe at any time: it may be stopped, killed, started again and run several times at once. Progress goes to standard
    error; unreadable rows, which stay as they are, and the summary go to standard output.

    Exit codes: 0 nothing that it looked at is left under another key (with --dry-run: all that is due can be read), 1
    something cannot be read, 2 it could not finish, or a setting is wrong.
    """
    if provider is not None and not re.fullmatch(SLUG_PATTERN, provider):
        raise UsageError(f"--provider must match {SLUG_PATTERN}")
    settings = settings_or_stop()
    configure_command_logging()  # the lines below say it all
    plan = SweepPlan(
        provider=provider, limit=limit, rows_per_second=rate, dry_run=dry_run, deadline_seconds=timeout_seconds
    )
    try:
        encryption = build_encryption(settings)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    with closing(encryption):
        report, reason = asyncio.run(_sweep(settings, encryption.service, plan, processes))
    print_summary(report, plan)
    sys.exit(_conclude(report, plan, reason))


async def _sweep(
    settings: Settings, encryption: EncryptionService, plan: SweepPlan, processes: int
) -> tuple[SweepReport, str | None]:
    """Run the sweep; return its report, and why it did not end by itself, if it did not."""
    progress = SweepProgress(plan)
    told_to_stop = _first_signal()
    async with (
        opened_store(settings) as tokens,
        _opened_audit(settings, plan) as audit,
        _resealing(settings, TokenCipher(encryption=encryption), processes) as resealer,
    ):
        # no log line for each token: its failures are printed anyway, and successes would bury them
        events = TokenEvents(audit=audit)
        sweep = Sweep(tokens=tokens, resealer=resealer, events=events, observer=progress, plan=plan)
        told_to_stop.add_done_callback(lambda name: sweep.stop(f"{name.result()} told it to stop"))
        async with _shown(progress):
            try:
                report = await sweep.run()
            except VaultError as error:  # no waiting would help
                reason = f"{error.code}: {error.detail}; see `token-vault doctor`"
                if progress.report is None:
                    raise UsageError(reason) from None
                return progress.report, reason
    return report, report.stopped


@asynccontextmanager
async def _resealing(settings: Settings, cipher: TokenCipher, processes: int) -> AsyncIterator[Resealer]:
    here = ResealerHere(cipher=cipher)
    if processes == 1:
        yield here
        return
    async with AsyncExitStack() as stack:
        several = ResealerProcesses(
            here=here,
            command=COMMAND,
            environment=open_variables(),
            first_line=first_line(settings),
            processes=processes,
        )
        try:
            await stack.enter_async_context(several)
        except OSError as error:
            raise UsageError(f"the system does not start {processes} processes: {error.strerror}") from None
        except InternalError as error:
            raise UsageError(error.detail) from None
        yield several


@asynccontextmanager
async def _opened_audit(settings: Settings, plan: SweepPlan) -> AsyncIterator[AuditTrail]:
    """Audit what is moved; a dry run moves nothing."""
    audit = NoAuditTrail() if plan.dry_run else await open_audit(settings)
    try:
        yield audit
    finally:
        await audit.close()


def _first_signal() -> asyncio.Future[str]:
    """Return what will be the name of the first SIGTERM or SIGINT, which from now on do nothing else."""
    loop = asyncio.get_running_loop()
    name: asyncio.Future[str] = loop.create_future()

    def note(number: signal.Signals) -> None:
        if not name.done():
            name.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note, number)
    return name


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
    """Say what the counts mean, and return the exit code."""
    tried = report.moved + report.overtaken + report.unreadable.total()
    if plan.dry_run and report.stopped is not None and report.due is not None and tried >= report.due:
        reason = None  # stopped at the very end
    if reason is None and plan.dry_run and not report.unreadable:
        click.echo("\nAll that is due can be read. Nothing was written.")
        return NOTHING_LEFT
    if not plan.dry_run and report.remaining == 0:
        click.echo(f"\nDone. {_nothing_left(plan)}")
        return NOTHING_LEFT
    if reason is None and report.unreadable:
        click.echo(f"\nUnreadable rows stay as they are. What to do about them: {_MANUAL}")
        return UNREADABLE
    reason = reason or ("others wrote under another key" if report.remaining else "the rows could not be counted")
    then = "Nothing was written." if plan.dry_run else "Run it again: what is moved stays moved."
    click.echo(f"\nNot finished: {reason}. {then}")
    return UNFINISHED


def _nothing_left(plan: SweepPlan) -> str:
    if plan.provider is None:
        return "Nothing is left under another key."
    return (
        f"No token of {plan.provider} is left under another key. Other providers' were not looked at: "
        "no key may go before a run without --provider."
    )
