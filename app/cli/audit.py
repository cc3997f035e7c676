"""`token-vault audit`: verify and search the audit trail."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from app.audit.log_files import LogFiles
from app.audit.reader import EventFilter, SearchResult, search_events
from app.audit.targets import is_stream
from app.audit.verify import ChainFinding, VerificationReport, Verifier
from app.cli.errors import UsageError
from app.cli.output import counted_noun, print_table
from app.config.audit import AuditReaderSettings
from app.config.source import SettingsError, loaded
from app.tokens.events import Operation

NOT_INTACT: Final = 1
_AGO: Final = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_HEADINGS: Final = ("TIME", "SERVICE", "KEY", "OPERATION", "OUTCOME", "USER", "TOKEN", "REVEALED", "ADDRESS", "PURPOSE")


@click.group()
def audit() -> None:
    """Verify and search the audit trail. Needs no settings but AUDIT_LOG and its keys."""


@audit.command(short_help="Find edited, removed, inserted, reordered or truncated lines.")
@click.argument("file", nargs=-1, type=click.Path(path_type=Path))
@click.option("--partial", is_flag=True, help="Some files are elsewhere: do not report their lines as missing.")
def verify(file: tuple[Path, ...], partial: bool) -> None:  # noqa: FBT001  click's way
    """Find every line that was edited, removed, inserted, reordered or truncated.

    Without FILE, verify all files of AUDIT_LOG. Warn of each change that was announced and has no outcome, because the
    process ended in between.

    Exit codes: 0 intact, also with warnings, 1 not intact, or no file holds an audit line, 2 a file cannot be read, or
    a setting is wrong.
    """
    settings = _settings()
    keys = settings.keys()
    if not keys:
        raise UsageError("AUDIT_KEY is needed: the key that signed the lines")
    files = file or _files_of(settings)
    try:
        report = Verifier(keys=keys, partial=partial).verify(files)
    except OSError as error:
        raise _unreadable(error) from None
    for note in report.notes:
        click.echo(_line("note", note))
    for warning in report.warnings:
        click.echo(_line("WARN", warning))
    for finding in report.findings:
        click.echo(_line("FAIL", finding))
    if not report.chains:
        click.echo(f"\nNot verified: {counted_noun(report.files, 'file')} without a line of an audit trail.")
        sys.exit(NOT_INTACT)
    examined = _examined(report)
    if not report.is_intact:
        findings = counted_noun(len(report.findings), "finding")
        click.echo(f"\nNot intact: {findings}; {examined}. What to do: docs/audit.md")
        sys.exit(NOT_INTACT)
    click.echo(f"{'No findings in these files' if partial else 'Intact'}: {examined}.")


@audit.command()
@click.argument("file", nargs=-1, type=click.Path(path_type=Path))
@click.option("--user", metavar="UUID", help="Only this user's tokens.")
@click.option("--service", metavar="NAME", help="Only this calling service.")
@click.option(
    "--operation",
    metavar="NAME",
    type=click.Choice([one.value for one in Operation]),
    help=f"Only this operation: {', '.join(one.value for one in Operation)}.",
)
@click.option("--outcome", metavar="CODE", help="Only this outcome: success, an error code, or no_outcome.")
@click.option(
    "--since",
    metavar="TIME",
    help="Only events since this date (2026-11-24), time (2026-11-24T18:00:00Z), both in UTC, or age (90m, 24h, 7d).",
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as one JSON object.")
def show(
    *,
    file: tuple[Path, ...],
    user: str | None,
    service: str | None,
    operation: str | None,
    outcome: str | None,
    since: str | None,
    as_json: bool,
) -> None:
    """Print audit events, oldest first, merged from all files.

    Without FILE, read all files of AUDIT_LOG. A change that was announced and has no outcome has the outcome
    no_outcome: it is in progress, or its process ended first. If AUDIT_KEY is set, `!` marks lines that are not genuine
    (with --json: "genuine":false). Only `token-vault audit verify` finds missing lines.

    Exit codes: 0 printed, 1 printed, but a line is not genuine, 2 nothing can be read, or a setting is wrong.
    """
    settings = _settings()
    keys = settings.keys()
    wanted = EventFilter(
        user=None if user is None else user.lower(),
        service=service,
        operation=operation,
        outcome=outcome,
        since=None if since is None else _time(since),
    )
    try:
        result = search_events(file or _files_of(settings), wanted, keys=keys)
    except OSError as error:
        raise _unreadable(error) from None
    if as_json:
        for one in result.events:
            mark = {"genuine": False} if one.genuine is False else {}
            click.echo(json.dumps({**one.event, **mark}, separators=(",", ":")))
    elif result.events:
        _print(result)
    else:
        click.echo("No such event.", err=True)
    if not keys:
        click.echo("Nothing was checked: AUDIT_KEY is not set.", err=True)
    if result.doubtful:
        click.echo(f"{_doubt(result)}: docs/audit.md", err=True)
        sys.exit(NOT_INTACT)


def _print(result: SearchResult) -> None:
    rows = [_HEADINGS, *(_row(one.event) for one in result.events)]
    if any(one.genuine is False for one in result.events):
        marks = ["", *("!" if one.genuine is False else "" for one in result.events)]
        print_table([(mark, *row) for mark, row in zip(marks, rows, strict=True)])
    else:
        print_table(rows)


def _doubt(result: SearchResult) -> str:
    if result.doubtful == 1:
        return f"1 line is not genuine{' and cannot be shown' if result.unreadable else ''}"
    unreadable = f", {result.unreadable:,} of them cannot be shown" if result.unreadable else ""
    return f"{result.doubtful:,} lines are not genuine{unreadable}"


def _settings() -> AuditReaderSettings:
    try:
        return loaded(AuditReaderSettings)
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _files_of(settings: AuditReaderSettings) -> list[Path]:
    if settings.audit_log is None or is_stream(settings.audit_log):
        raise UsageError("name the files to read: AUDIT_LOG names none")
    try:
        files = LogFiles(Path(settings.audit_log)).files()
    except OSError as error:
        raise _unreadable(error) from None
    if not files:
        raise UsageError(f"there is no file of {settings.audit_log} yet")
    return files


def _unreadable(error: OSError) -> UsageError:
    return UsageError(f"{error.filename or 'the audit trail'} cannot be read: {error.strerror}")


def _examined(report: VerificationReport) -> str:
    events, chains, files = (
        counted_noun(count, noun)
        for count, noun in ((report.events, "event"), (report.chains, "chain"), (report.files, "file"))
    )
    examined = f"{events} in {chains} and {files}"
    if report.warnings:
        changes = counted_noun(len(report.warnings), "change")
        examined = f"{examined}; {changes} without an outcome: docs/audit.md"
    if not report.live:
        return examined
    if report.live == report.chains == 1:
        live = "the chain is"
    else:
        live = f"{report.live:,} of the chains {'is' if report.live == 1 else 'are'}"
    return f"{examined}; {live} still open, and lines cut off at the end would not show"


def _line(state: str, finding: ChainFinding) -> str:
    return f"{state}  {finding.location}: {finding.problem}: {finding.detail}"


def _time(text: str) -> datetime:
    """Parse a time, or how long ago it was; without an offset it is UTC."""
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):  # not a time, or before the year 1
        raise UsageError("--since must be a time like 2026-11-24T18:00:00Z, or how long ago, like 24h") from None


def _row(event: dict[str, Any]) -> tuple[str, ...]:
    token = event.get("provider")
    if token is not None and event.get("service_type") != "default":
        token = f"{token}/{event.get('service_type')}"
    revealed = event.get("revealed")
    omitted = f" (+{event['omitted']} omitted)" if "omitted" in event else ""
    late = " (late)" if event.get("late") else ""
    for_user = " (for a user)" if event.get("on_behalf_of") else ""
    cells = (
        event.get("time"),
        f"{event.get('service')}{for_user}" if for_user else event.get("service"),
        event.get("key"),
        event.get("operation"),
        f"{event.get('outcome')}{omitted}{late}",
        event.get("user_id"),
        token,
        ",".join(map(str, revealed)) if isinstance(revealed, list) else revealed,
        event.get("address"),
        event.get("purpose"),
    )
    return tuple("-" if cell is None or cell == "" else _printable(str(cell)) for cell in cells)


def _printable(text: str) -> str:
    """Replace control characters, which an edited line may hold and a terminal would execute."""
    return "".join(one if one.isprintable() else "?" for one in text)
