"""docs/threat-model.md names tests for its controls, and each of them is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT

PAGE: Final = (ROOT / "docs" / "threat-model.md").read_text()
CONTROLS: Final = PAGE.partition("\n## Controls\n")[2].partition("\n## Not protected\n")[0]


def _rows() -> list[tuple[str, str]]:
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in CONTROLS.splitlines() if "|" in line]
    return [(row[0], row[1]) for row in rows if len(row) == 2 and row[0] not in {"control", "---"}]


@cache
def _tests_of(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_control_names_a_test() -> None:
    assert len(_rows()) > 30
    assert [control for control, tests in _rows() if not re.search(r"`tests/\S+::test_\w+`", tests)] == []


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert named
    assert len(named) == PAGE.count("::test_")
    assert [f"{file}::{name}" for file, name in named if name not in _tests_of(ROOT / file)] == []
