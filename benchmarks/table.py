"""The table of results at the end of a run, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_HEADINGS = (
    "measured",
    "ratio",
    "to",
    "figure",
    "p50 ms",
    "p99 ms",
    "server µs",
    "wait µs",
    "database µs",
    "asked",
    "met",
)


@dataclass(frozen=True, slots=True)
class Target:
    """The bound of a figure, or of its ratio with `of_ratio`."""

    at_least: float | None = None
    at_most: float | None = None
    of_ratio: bool = False

    def is_met(self, line: Line) -> bool:
        value = line.ratio if self.of_ratio else line.figure
        if value is None:
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def words(self, unit: str) -> str:
        sign, bound = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        return f"{sign} {number(bound or 0.0)}{'x' if self.of_ratio else f' {unit}'}"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, its ratio to a baseline, and its target.

    `server_us` and `database_us` are the processor time of one request, or of one token in a batch, in the server's
    processes and in those behind it. `wait_us` is how long the server's threads waited for a processor meanwhile.
    `note` follows the figure.
    """

    name: str
    figure: float | None = None
    unit: str = ""
    ratio: float | None = None
    baseline: str = ""
    target: Target | None = None
    note: str = ""
    p50_ms: float | None = None
    p99_ms: float | None = None
    server_us: float | None = None
    wait_us: float | None = None
    database_us: float | None = None

    def cells(self) -> tuple[str, ...]:
        figure = "" if self.figure is None else f"{number(self.figure)} {self.unit}".strip()
        return (
            self.name,
            "" if self.ratio is None else f"{self.ratio:.2f}x",
            self.baseline,
            f"{figure} at {self.note}" if self.note else figure,
            *(
                "" if value is None else number(value)
                for value in (self.p50_ms, self.p99_ms, self.server_us, self.wait_us, self.database_us)
            ),
            "" if self.target is None else self.target.words(self.unit),
            "" if self.target is None else "yes" if self.target.is_met(self) else "NO",
        )


def render(lines: Sequence[Line]) -> str:
    """Return the lines as a table in Markdown, without the columns that are empty in all of them."""
    rows = [line.cells() for line in lines]
    kept = [number for number in range(len(_HEADINGS)) if any(row[number] for row in rows)]
    table = [_HEADINGS, tuple("---" for _ in _HEADINGS), *rows]
    return "\n".join(f"| {' | '.join(row[number] for number in kept)} |" for row in table)


def number(value: float) -> str:
    """Format with three significant digits and separated thousands."""
    if value >= 1_000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
