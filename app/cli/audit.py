"""`token-vault audit`: whether the record is whole, and what it says."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from pydantic_settings.exceptions import SettingsError as SettingsSourceError

from app.audit.findings import Finding, Report
from app.audit.log_files import LogFiles
from app.audit.reader import Kept, Reading, Wanted, read_events
from app.audit.stream_target import is_stream
from app.audit.verify import Verifier
from app.cli.errors import UsageError
from app.cli.output import counted_noun, print_table
from app.config.audit import AuditReaderSettings, wrong_names
from app.config.settings import ENV_FILE
from app.tokens.events import Operation

WHOLE, NOT_WHOLE = 0, 1
_AGO = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_HEADINGS = ("TIME", "SERVICE", "KEY", "OPERATION", "OUTCOME", "USER", "TOKEN", "REVEALED", "ADDRESS", "PURPOSE")


@click.group()
def audit() -> None:
    """Verify and read the audit trail. Of all settings only AUDIT_LOG and its keys are needed."""


@audit.command()
@click.argument("file", nargs=-1, type=click.Path(path_type=Path))
@click.option("--partial", is_flag=True, help="Some files are elsewhere: don't miss what is not in these.")
def verify(file: tuple[Path, ...], partial: bool) -> None:  # noqa: FBT001  click's way
    """Find every event that was edited, removed, inserted, reordered or cut off, and say where.

    Without FILE it takes all files of AUDIT_LOG.

    Exit codes: 0 the record is whole, 1 it is not, 2 it cannot be verified.
    """
    settings = _settings()
    keys = settings.keys()
    if not keys:
        raise UsageError("AUDIT_KEY is needed: the one that the lines were signed with")
    files = file or _files_of(settings)
    try:
        report = Verifier(keys=keys, partial=partial).verify(files)
    except OSError as error:
        raise _unreadable(error) from None
    for note in report.notes:
        click.echo(_line("note", note))
    for finding in report.findings:
        click.echo(_line("FAIL", finding))
    examined = _looked_at(report)
    if not report.chains:
        click.echo(f"\nNot verified: there is no line of an audit trail in {counted_noun(report.files, 'file')}.")
        sys.exit(NOT_WHOLE)
    if not report.is_whole:
        click.echo(
            f"\nNot whole: {counted_noun(len(report.findings), 'finding')}; {examined}. What to do: docs/audit.md"
        )
        sys.exit(NOT_WHOLE)
    click.echo(f"{'Nothing is wrong with these' if partial else 'Whole'}: {examined}.")


@audit.command()
@click.argument("file", nargs=-1, type=click.Path(path_type=Path))
@click.option("--user", metavar="UUID", help="Only this user's tokens.")
@click.option("--service", metavar="NAME", help="Only what this service did.")
@click.option("--operation", type=click.Choice([one.value for one in Operation]), help="Only this operation.")
@click.option("--outcome", metavar="CODE", help="Only this outcome: success, or an error's code.")
@click.option("--since", metavar="TIME", help="Only from then on: 2026-11-24, 2026-11-24T18:00:00Z, 90m, 24h or 7d.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as it is kept.")
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
    """Show events of all chains in the order of their times.

    Without FILE it takes all files of AUDIT_LOG. Where AUDIT_KEY is set, `!` marks lines that the vault has not written
    like this (with --json: "genuine":false). Lines that are missing only `token-vault audit verify` finds.

    Exit codes: 0, 1 where a line is not genuine, 2 where nothing can be read.
    """
    settings = _settings()
    keys = settings.keys()
    wanted = Wanted(
        user=None if user is None else user.lower(),
        service=service,
        operation=operation,
        outcome=outcome,
        since=None if since is None else _time(since),
    )
    try:
        reading = read_events(file or _files_of(settings), wanted, keys=keys)
    except OSError as error:
        raise _unreadable(error) from None
    if as_json:
        for one in reading.kept:
            mark = {"genuine": False} if one.genuine is False else {}
            click.echo(json.dumps({**one.event, **mark}, separators=(",", ":")))
    elif reading.kept:
        _print(reading)
    else:
        click.echo("No such event.", err=True)
    if not keys:
        click.echo("Nothing was checked: AUDIT_KEY is not set.", err=True)
    if reading.doubtful:
        click.echo(f"{_doubt(reading)}: docs/audit.md", err=True)
        sys.exit(NOT_WHOLE)


def _print(reading: Reading) -> None:
    rows = [_HEADINGS, *(_row(one.event) for one in reading.kept)]
    if any(one.genuine is False for one in reading.kept):
        marks = ["", *(_mark(one) for one in reading.kept)]
        print_table([(mark, *row) for mark, row in zip(marks, rows, strict=True)])
    else:
        print_table(rows)


def _doubt(reading: Reading) -> str:
    if reading.doubtful == 1:
        return f"1 line is not as the vault writes it{' and cannot be shown' if reading.unreadable else ''}"
    unreadable = f", {reading.unreadable:,} of them cannot be shown" if reading.unreadable else ""
    return f"{reading.doubtful:,} lines are not as the vault writes them{unreadable}"


def _mark(one: Kept) -> str:
    return "!" if one.genuine is False else ""


def _settings() -> AuditReaderSettings:
    try:
        return AuditReaderSettings()
    except ValidationError as error:
        raise UsageError(wrong_names(error)) from None
    except SettingsSourceError:
        raise UsageError("a setting could not be parsed") from None
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{ENV_FILE} cannot be read as UTF-8 text") from None


def _files_of(settings: AuditReaderSettings) -> list[Path]:
    if settings.audit_log is None or settings.audit_log == "-" or is_stream(Path(settings.audit_log)):
        raise UsageError("name the files: AUDIT_LOG names none")
    family = LogFiles(Path(settings.audit_log))
    try:
        files = family.files()
    except OSError as error:
        raise _unreadable(error) from None
    if not files:
        raise UsageError(f"there is no file of {settings.audit_log} yet")
    return files


def _unreadable(error: OSError) -> UsageError:
    return UsageError(f"{error.filename or 'the record'} cannot be read: {error.strerror}")


def _looked_at(report: Report) -> str:
    events, chains, files = (
        counted_noun(count, noun)
        for count, noun in ((report.events, "event"), (report.chains, "chain"), (report.files, "file"))
    )
    words = f"{events} in {chains} and {files}"
    if report.live == 1:
        which = "the chain" if report.chains == 1 else "1 of the chains"
        words += f"; {which} is still open, and what was cut off its end would not show"
    elif report.live:
        words += f"; {report.live:,} of the chains are still open, and what was cut off their ends would not show"
    return words


def _line(state: str, finding: Finding) -> str:
    return f"{state}  {finding.place}: {finding.problem}: {finding.words}"


def _time(text: str) -> datetime:
    """Read a moment, or how long ago it was; without an offset it is UTC."""
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):  # no time, or before the year 1
        raise UsageError("--since must be a time like 2026-11-24T18:00:00Z, or how long ago, like 24h") from None


def _row(event: dict[str, Any]) -> tuple[str, ...]:
    token = event.get("provider")
    if token is not None and event.get("service_type") != "default":
        token = f"{token}/{event.get('service_type')}"
    revealed = event.get("revealed")
    omitted = f" (+{event['omitted']} omitted)" if "omitted" in event else ""
    late = " (late)" if event.get("late") else ""
    cells = (
        event.get("time"),
        event.get("service"),
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
    """Replace control characters: an edited line may hold any, and a terminal obeys them."""
    return "".join(one if one.isprintable() else "?" for one in text)
