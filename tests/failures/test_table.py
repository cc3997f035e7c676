"""The failure table is complete, its tests exist, and docs/failures.md holds the same."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.failures.table import BY_NAME, ERRORS, HEADING, TABLE, render
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs" / "failures.md"
CODES_OF_DEPENDENCIES = {
    "audit_unavailable",
    "key_denied",
    "key_unavailable",
    "store_misconfigured",
    "store_timeout",
    "store_unavailable",
    "unauthenticated",
}


def test_the_document_holds_the_table() -> None:
    text = DOCUMENT.read_text()
    found = text[text.index(HEADING) :].partition("\n\n")[0].rstrip("\n") + "\n"
    assert found == render()


def test_writes_are_checked_only_if_a_test_does_so() -> None:
    assert BY_NAME["PostgreSQL stopped"].writes_are_checked
    assert BY_NAME["KMS denies"].writes_are_checked
    assert not BY_NAME["PostgREST stopped"].writes_are_checked, "its test stores nothing during the failure"
    assert not BY_NAME["Log's disk full"].writes_are_checked


def test_readiness_has_no_answer_if_no_process_runs() -> None:
    gone = [line for line in render().splitlines() if "| no answer |" in line]
    assert len(gone) == len([failure for failure in TABLE if not failure.runs]) == 3
    assert all(failure.code is None and failure.check is None for failure in TABLE if not failure.runs)


def test_every_name_is_unique() -> None:
    assert len(BY_NAME) == len(TABLE)


def test_every_error_of_a_dependency_has_a_line() -> None:
    assert {failure.code for failure in TABLE} - {None} >= CODES_OF_DEPENDENCIES
    assert all(failure.code is None or failure.code in ERRORS for failure in TABLE)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_line_says_how_the_failure_ends(name: str) -> None:
    failure = BY_NAME[name]
    assert (failure.recovers_within_seconds is None) is bool(failure.ends_with)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_named_test_exists(name: str) -> None:
    assert BY_NAME[name].tests
    for test in BY_NAME[name].tests:
        file, _, function = test.partition("::")
        assert function in _tests_of(ROOT / file), test


def test_every_test_of_this_folder_is_named_in_the_table() -> None:
    named = {test for failure in TABLE for test in failure.tests}
    tests_here = {
        f"{file.relative_to(ROOT)}::{function}"
        for file in Path(__file__).parent.glob("test_*.py")
        if file != Path(__file__)
        for function in _tests_of(file)
    }
    assert tests_here <= named


def _tests_of(file: Path) -> set[str]:
    module = ast.parse(file.read_text())
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}
