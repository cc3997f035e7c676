"""Progress and summary of a sweep, as text."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from typing import Final

import click

from app.cli.output import counted_noun, print_table
from app.errors import VaultError
from app.rewrap.report import SweepReport
from app.rewrap.sweep import SweepPlan

TICK_SECONDS: Final = 0.1
_BETWEEN_LINES_SECONDS: Final = 5.0
_RATE_OVER_SECONDS: Final = 10.0
_RECOVERED_SECONDS: Final = 3.0
_BAR_CHARACTERS: Final = 24
_CLEAR_LINE: Final = "\r\x1b[K"


class SweepProgress:
    """`SweepObserver` on two streams: progress on standard error, unreadable rows on standard output.

    On a terminal progress is one line that is redrawn, otherwise a line every few seconds. An error that is retried is
    shown once, and again only after the sweep has recovered. `legacy_opens`: PulsePlan's formats can be read.
    """

    def __init__(self, plan: SweepPlan, *, legacy_opens: bool) -> None:
        self._plan = plan
        self._legacy_opens = legacy_opens
        self._live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._report: SweepReport | None = None
        self._done_lately: deque[tuple[float, int]] = deque()
        self._next_line_at = time.monotonic() + _BETWEEN_LINES_SECONDS
        self._shown_errors: set[str] = set()
        self._recovered_at = 0.0

    @property
    def report(self) -> SweepReport | None:
        """The last report, `None` before the first count."""
        return self._report

    def progressed(self, report: SweepReport) -> None:
        counted = self._report is None
        self._report = report
        if counted and report.stopped is None and self._legacy_opens:
            self._say_what_is_lost(report)
        self.tick()

    def _say_what_is_lost(self, report: SweepReport) -> None:
        """Say, before the first row is rewrapped, that PulsePlan's own service will not read legacy rows any more."""
        if report.legacy is None:
            which = "if rows are in PulsePlan's formats"
        elif report.legacy:
            which = f"{counted_noun(report.legacy, 'row')} in PulsePlan's formats"
        else:
            return
        self._say(f"{click.style('notice', fg='yellow')}  {which}: its own service cannot read them once rewrapped")

    def unreadable(self, row_id: str, error: VaultError) -> None:
        self._clear()
        name = row_id if row_id.isprintable() else ascii(row_id)
        click.echo(f"{click.style('unreadable', fg='red')}  {name}  {error.code}: {error.detail}")
        self._draw()

    def waiting(self, error: VaultError, seconds: float) -> None:
        self._recovered_at = time.monotonic() + seconds + _RECOVERED_SECONDS
        if error.detail not in self._shown_errors:
            self._shown_errors.add(error.detail)
            bound = f"for {self._plan.retry_seconds / 60:.0f} minutes at most"
            self._say(f"{click.style('waiting', fg='yellow')}  {error.code}: {error.detail}; {bound}")

    def tick(self) -> None:
        """Redraw the progress; call it every `TICK_SECONDS`."""
        now = time.monotonic()
        self._done_lately.append((now, self._done))
        while self._done_lately[0][0] < now - _RATE_OVER_SECONDS:
            self._done_lately.popleft()
        if self._shown_errors and now > self._recovered_at and self._rate() > 0:
            self._shown_errors.clear()
            self._say("recovered")
        if self._live:
            self._draw()
        elif now >= self._next_line_at and self._report is not None:
            self._next_line_at = now + _BETWEEN_LINES_SECONDS
            self._say(self._line())

    def close(self) -> None:
        """Clear the line and draw no more."""
        self._clear()
        self._live = False

    @property
    def _done(self) -> int:
        return 0 if self._report is None else self._report.tried

    @property
    def _expected(self) -> int:
        """Estimated rows of this sweep: the count covers all shards, which are about equally large."""
        due = (self._report.due if self._report else None) or 0
        if self._plan.shard is not None:
            due //= self._plan.shard.count
        return max(self._done, due if self._plan.limit is None else min(due, self._plan.limit))

    def _rate(self) -> float:
        (first_at, first), (last_at, last) = self._done_lately[0], self._done_lately[-1]
        return max(0, last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def _line(self) -> str:
        if self._report is None or (self._report.due is None and not self._done):
            return "counting"
        rate = self._rate()
        total = f" of {self._expected:,}" if self._report.due is not None else ""
        line = f"{self._done:,}{total} {'read' if self._plan.dry_run else 'done'}, {rate:,.0f} rows/s"
        if self._shown_errors:
            return f"{line}, waiting"
        left = (self._expected - self._done) / rate if rate else 0
        return f"{line}, {left // 60:.0f}:{left % 60:02.0f} left" if left else line

    def _draw(self) -> None:
        if not self._live:
            return
        part = self._done / self._expected if self._expected else 0.0
        full = int(part * _BAR_CHARACTERS)
        line = f"{part:4.0%} [{'#' * full}{'.' * (_BAR_CHARACTERS - full)}] {self._line()}"
        columns = shutil.get_terminal_size().columns
        click.echo(_CLEAR_LINE + line[: columns - 1], nl=False, err=True, color=True)

    def _clear(self) -> None:
        if self._live:
            click.echo(_CLEAR_LINE, nl=False, err=True, color=True)

    def _say(self, line: str) -> None:
        self._clear()
        click.echo(line, err=True)
        self._draw()


def print_summary(report: SweepReport, plan: SweepPlan) -> None:
    """Print the counts of a sweep."""
    if report.unreadable:
        click.echo("")  # ends the list of unreadable rows
    by_code = ", ".join(f"{code} {rows:,}" for code, rows in sorted(report.unreadable.items()))
    rate = report.rewrapped / report.seconds if report.seconds else 0.0
    counted = "" if plan.shard is None else "in all shards"
    rows = [
        ("due", _number(report.due), counted),
        ("readable" if plan.dry_run else "rewrapped", f"{report.rewrapped:,}", ""),
        ("overtaken", f"{report.overtaken:,}", "changed or deleted by others" if report.overtaken else ""),
        ("unreadable", f"{report.unreadable.total():,}", by_code),
        ("in doubt", f"{report.in_doubt:,}", "written without an answer" if report.in_doubt else ""),
        ("remaining", _number(report.remaining), counted),
        ("seconds", f"{report.seconds:,.1f}", ""),
        ("rows/s", f"{rate:,.0f}", ""),
    ]
    print_table(rows, right=[1])


def _number(rows: int | None) -> str:
    return "unknown" if rows is None else f"{rows:,}"
