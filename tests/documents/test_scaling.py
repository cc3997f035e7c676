"""The arithmetic of docs/scaling.md, and the statements that it names."""

from __future__ import annotations

import re
from inspect import isfunction

import pytest

from app.config.settings import Settings
from app.stores.postgres import statements
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text()
BUSY = 0.6
WIDE = "\N{NO-BREAK SPACE}"


def _rows(heading: str) -> list[list[str]]:
    table = PAGE.partition(f"\n{heading}\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def _number(cell: str) -> float:
    found = re.match(r"[\d. ]+", cell.replace(WIDE, " "))
    assert found, cell
    return float(found[0].replace(" ", ""))


FIGURES = {
    name: tuple(map(_number, cells))
    for name, *cells in _rows(
        "| operation | processor time of the vault | of the database | one core of the vault at 60 % |"
    )
}


@pytest.mark.parametrize("operation", FIGURES)
def test_the_figures_are_near_those_that_were_measured(operation: str) -> None:
    vault, database, rate = FIGURES[operation]
    performance = (ROOT / "docs" / "performance.md").read_text()
    [line] = re.findall(rf"^\| {operation}, PostgreSQL, 1 worker \|  \|.*$", performance, re.MULTILINE)
    *_, measured_vault, measured_database, _, _ = (cell.strip() for cell in line.strip("|").split("|"))
    assert vault == pytest.approx(_number(measured_vault), rel=0.5)
    assert database == pytest.approx(_number(measured_database), rel=0.5)
    assert rate == round(BUSY * 1e6 / vault)


def test_the_arithmetic_for_replicas_is_right() -> None:
    _, database, rate = FIGURES["reveal"]
    rows = _rows("| replicas | reveals | cores of the database | connections at most | requests to KMS |"
                 " if no user comes twice |")  # fmt: skip
    assert [row[0] for row in rows] == ["1", "10", "100"]
    for row in rows:
        replicas, reveals, cores, connections, requests, unseen = map(_number, row)
        assert reveals == unseen == replicas * rate
        assert cores == round(reveals * database / 1e6, 2)
        assert connections == replicas * Settings.model_fields["database_pool_size"].default
        assert requests == pytest.approx(reveals * 70 / 1000, abs=0.6)
    assert "| 30 million | 350/s | 300 s | 70 | 14 |" in (ROOT / "docs" / "kms.md").read_text()


def test_the_arithmetic_for_ten_million_rows_is_right() -> None:
    rows = {name: tuple(map(_number, cells)) for name, *cells in
            _rows("| encryption | bytes of a row | of these indexes | ten million rows |")}  # fmt: skip
    for total, _, gigabytes in rows.values():
        assert gigabytes == pytest.approx(total * 1e7 / 1e9, abs=0.06)
    assert f"{rows['local'][1] * 1e7 / 1e9:.1f} GB" in PAGE
    assert f"{1e7 / FIGURES['store'][2] / 3600:.1f} hours" in PAGE


def test_the_statements_that_visit_every_node_are_named() -> None:
    one_token = re.compile(
        r"\(user_id, provider|user_id = |where id = |tokens\.id = |insert into|(back|refresh|ciphertexts)\("
    )
    catalog = re.compile(r"access_findings|sees_every_row|pg_attribute")
    reading = {
        name: value
        for name, value in vars(statements).items()
        if not name.startswith("_") and isinstance(value, str) and re.search("oauth_tokens|token_vault_", value)
    }
    wide = {name for name, value in reading.items() if not one_token.search(value) and not catalog.search(value)}
    written = {
        name
        for name, value in vars(statements).items()
        if isfunction(value) and value.__module__ == statements.__name__ and not name.startswith("_")
    }
    wide |= written - {"parameter", "update"}  # the first is no statement, the second names an id
    named = {name for cells in _rows("| statement | for |") for name in re.findall(r"`(\w+)`", cells[0])}
    assert wide == named
