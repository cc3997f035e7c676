"""The table is complete, its proofs exist, and people read the same."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.failures.table import BY_NAME, ERRORS, HEADING, TABLE, render
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs" / "failures.md"
OF_A_DEPENDENCY = {
    "audit_unavailable",
    "key_denied",
    "key_unavailable",
    "store_misconfigured",
    "store_timeout",
    "store_unavailable",
    "unauthenticated",
}


def test_the_document_holds_this_table() -> None:
    text = DOCUMENT.read_text()
    found = text[text.index(HEADING) :].partition("\n\n")[0].rstrip("\n") + "\n"
    assert found == render()


def test_stores_are_held_only_where_a_scenario_does() -> None:
    assert BY_NAME["PostgreSQL stopped"].holds_stores
    assert BY_NAME["KMS denies"].holds_stores
    assert not BY_NAME["PostgREST stopped"].holds_stores, "its test stores nothing while it fails"
    assert not BY_NAME["Disk full below the log"].holds_stores


def test_readiness_has_no_answer_where_no_process_runs() -> None:
    gone = [line for line in render().splitlines() if "| no answer |" in line]
    assert len(gone) == len([failure for failure in TABLE if not failure.runs]) == 3
    assert all(failure.code is None and failure.check is None for failure in TABLE if not failure.runs)


def test_every_line_is_one_failure() -> None:
    assert len(BY_NAME) == len(TABLE)


def test_every_error_of_a_dependency_has_a_line() -> None:
    assert {failure.code for failure in TABLE} - {None} >= OF_A_DEPENDENCY
    assert all(failure.code is None or failure.code in ERRORS for failure in TABLE)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_line_ends_in_time_or_says_what_it_takes(name: str) -> None:
    failure = BY_NAME[name]
    assert (failure.recovers_within_seconds is None) is bool(failure.ends_with)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_proof_exists(name: str) -> None:
    assert BY_NAME[name].tests
    for test in BY_NAME[name].tests:
        file, _, function = test.partition("::")
        assert function in _tests_of(ROOT / file), test


def test_every_scenario_has_a_line() -> None:
    named = {test for failure in TABLE for test in failure.tests}
    scenarios = {
        f"{file.relative_to(ROOT)}::{function}"
        for file in Path(__file__).parent.glob("test_*.py")
        if file != Path(__file__)
        for function in _tests_of(file)
    }
    assert scenarios <= named


def _tests_of(file: Path) -> set[str]:
    module = ast.parse(file.read_text())
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}
