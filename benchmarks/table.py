"""The table of results at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.cli.output import table_lines

_HEADINGS = ("measured", "figure", "ratio", "to", "target", "met")
_RIGHT_ALIGNED = frozenset({1, 2})


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
        sign, bound = (">=", self.at_least) if self.at_least is not None else ("<=", self.at_most)
        return f"{sign} {_number(bound or 0.0)}{'x' if self.of_ratio else f' {unit}'}"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, its ratio to a baseline, and its target."""

    name: str
    figure: float
    unit: str
    ratio: float | None = None
    baseline: str = ""
    target: Target | None = None

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{_number(self.figure)} {self.unit}",
            "" if self.ratio is None else f"{self.ratio:.2f}x",
            self.baseline,
            "no target" if self.target is None else self.target.words(self.unit),
            "no target" if self.target is None else "yes" if self.target.is_met(self) else "NO",
        )


def render(lines: Sequence[Line]) -> str:
    """Align the lines in columns."""
    return "\n".join(table_lines([_HEADINGS, *(line.cells() for line in lines)], right=_RIGHT_ALIGNED, underlined=True))


def _number(value: float) -> str:
    """Format with three significant digits and separated thousands."""
    if value >= 1_000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
