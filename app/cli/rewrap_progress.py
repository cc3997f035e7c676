"""What a person sees of a sweep while it runs, and how it ended."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from typing import Final

import click

from app.cli.output import print_table
from app.errors import VaultError
from app.rewrap.report import SweepReport
from app.rewrap.sweep import SweepPlan

TICK_SECONDS: Final = 0.1
_BETWEEN_LINES_SECONDS: Final = 5.0
_RATE_OVER_SECONDS: Final = 10.0
_CALM_SECONDS: Final = 3.0
_BAR_CHARACTERS: Final = 24
_CLEAR_LINE: Final = "\r\x1b[K"


class SweepProgress:
    """`SweepObserver` on two streams: progress on standard error, unreadable rows on standard output.

    On a terminal progress is one line that is drawn anew, elsewhere a line every few seconds. What the sweep waits for
    is told once, and again only when it has been going well in between.
    """

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._report: SweepReport | None = None
        self._done_lately: deque[tuple[float, int]] = deque()
        self._next_line_at = time.monotonic() + _BETWEEN_LINES_SECONDS
        self._told: set[str] = set()
        self._calm_at = 0.0

    @property
    def report(self) -> SweepReport | None:
        """What was done as far as it is known."""
        return self._report

    def progressed(self, report: SweepReport) -> None:
        self._report = report
        self.tick()

    def unreadable(self, row_id: str, error: VaultError) -> None:
        self._clear()
        name = row_id if row_id.isprintable() else ascii(row_id)
        click.echo(f"{click.style('unreadable', fg='red')}  {name}  {error.code}: {error.detail}")
        self._draw()

    def waiting(self, error: VaultError, seconds: float) -> None:
        self._calm_at = time.monotonic() + seconds + _CALM_SECONDS
        if error.detail not in self._told:
            self._told.add(error.detail)
            patience = f"for {self._plan.patience_seconds / 60:.0f} minutes at most"
            self._say(f"{click.style('waiting', fg='yellow')}  {error.code}: {error.detail}; {patience}")

    def tick(self) -> None:
        """Show how far it is; call it often."""
        now = time.monotonic()
        self._done_lately.append((now, self._done))
        while self._done_lately[0][0] < now - _RATE_OVER_SECONDS:
            self._done_lately.popleft()
        if self._told and now > self._calm_at and self._rate() > 0:
            self._told.clear()
            self._say("going on")
        if self._live:
            self._draw()
        elif now >= self._next_line_at and self._report is not None:
            self._next_line_at = now + _BETWEEN_LINES_SECONDS
            self._say(self._words())

    def close(self) -> None:
        """Leave the terminal to what follows."""
        self._clear()
        self._live = False

    @property
    def _done(self) -> int:
        report = self._report
        return 0 if report is None else report.moved + report.overtaken + report.unreadable.total()

    @property
    def _all(self) -> int:
        due = (self._report.due if self._report else None) or 0
        return max(self._done, due if self._plan.limit is None else min(due, self._plan.limit))

    def _rate(self) -> float:
        (first_at, first), (last_at, last) = self._done_lately[0], self._done_lately[-1]
        return max(0, last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def _words(self) -> str:
        if self._report is None or (self._report.due is None and not self._done):
            return "counting"
        rate = self._rate()
        known = f" of {self._all:,}" if self._report.due is not None else ""
        words = f"{self._done:,}{known} {'read' if self._plan.dry_run else 'done'}, {rate:,.0f} rows/s"
        if self._told:
            return f"{words}, waiting"
        left = (self._all - self._done) / rate if rate else 0
        return f"{words}, {left // 60:.0f}:{left % 60:02.0f} left" if left else words

    def _draw(self) -> None:
        if not self._live:
            return
        part = self._done / self._all if self._all else 0.0
        full = int(part * _BAR_CHARACTERS)
        line = f"{part:4.0%} [{'#' * full}{'.' * (_BAR_CHARACTERS - full)}] {self._words()}"
        columns = shutil.get_terminal_size().columns
        click.echo(_CLEAR_LINE + line[: columns - 1], nl=False, err=True, color=True)

    def _clear(self) -> None:
        if self._live:
            click.echo(_CLEAR_LINE, nl=False, err=True, color=True)

    def _say(self, words: str) -> None:
        self._clear()
        click.echo(words, err=True)
        self._draw()


def print_summary(report: SweepReport, plan: SweepPlan) -> None:
    """Print what was done, count by count."""
    if report.unreadable:
        click.echo("")  # the rows themselves stand above
    by_code = ", ".join(f"{code} {rows:,}" for code, rows in sorted(report.unreadable.items()))
    rate = report.moved / report.seconds if report.seconds else 0.0
    rows = [
        ("due", _number(report.due), ""),
        ("readable" if plan.dry_run else "moved", f"{report.moved:,}", ""),
        ("overtaken", f"{report.overtaken:,}", "changed or deleted by others meanwhile" if report.overtaken else ""),
        ("unreadable", f"{report.unreadable.total():,}", by_code),
        ("in doubt", f"{report.in_doubt:,}", "written without an answer" if report.in_doubt else ""),
        ("remaining", _number(report.remaining), ""),
        ("seconds", f"{report.seconds:,.1f}", ""),
        ("rows/s", f"{rate:,.0f}", ""),
    ]
    print_table(rows, right=[1])


def _number(rows: int | None) -> str:
    return "unknown" if rows is None else f"{rows:,}"
