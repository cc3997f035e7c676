"""The arithmetic of docs/scaling.md, and the statements that it names."""

from __future__ import annotations

import re
from dataclasses import replace
from inspect import isfunction
from uuid import uuid4

import pytest

from app.config.settings import Settings
from app.security.context import SecretField
from app.security.schemes import scheme_of
from app.stores.postgres import statements
from app.tokens.models import TokenId
from tests.support.paths import ROOT
from tests.support.rewrap.stored_rows import encryption, local_encryption
from tests.support.sizes import SOAK, size
from tests.support.stack.kms import Kms
from tests.support.stack.postgres import Postgres
from tests.support.stores.postgres import connected
from tests.support.stores.stores import token

PAGE = (ROOT / "docs" / "scaling.md").read_text()
BUSY = 0.6
SIZES = "| encryption | bytes of a row | of these indexes | ten million rows |"
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
    *_, measured_vault, _, measured_database, _, _ = (cell.strip() for cell in line.strip("|").split("|"))
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
            _rows(SIZES)}  # fmt: skip
    for total, _, gigabytes in rows.values():
        assert gigabytes == pytest.approx(total * 1e7 / 1e9, abs=0.06)
    assert f"{rows['local'][1] * 1e7 / 1e9:.1f} GB" in PAGE
    assert f"{1e7 / FIGURES['store'][2] / 3600:.1f} hours" in PAGE


@pytest.mark.parametrize("name", ["local", "KMS"])
async def test_a_row_takes_the_bytes_of_the_page(name: str, kms: Kms, postgres: Postgres) -> None:
    service = encryption(kms.environment()) if name == "KMS" else local_encryption(1)
    one = token(TokenId(str(uuid4()), "google", "calendar"))
    user_id, provider, service_type = one.token_id
    access, refresh = (
        service.encrypt_token(text, user_id, provider=provider, service_type=service_type, field=field)
        for text, field in (("a" * 200, SecretField.ACCESS_TOKEN), ("r" * 100, SecretField.REFRESH_TOKEN))
    )
    one = replace(
        one,
        access_ciphertext=access,
        refresh_ciphertext=refresh,
        encryption_scheme=scheme_of(access),
        kms_key_id=f"google_kms_{user_id}_{'0' * 16}" if name == "KMS" else None,
        scopes=("https://www.googleapis.com/auth/calendar",),
    )
    rows = size(2_000, 20_000)
    with postgres.new_database() as database:
        database.migrate()
        async with connected(postgres.uri(database.name)) as repository:
            await repository.insert(one)
        database.sql(
            "insert into oauth_tokens select (jsonb_populate_record(one, jsonb_build_object("
            "'id', gen_random_uuid(), 'user_id', gen_random_uuid(), 'expires_at', now() + number * interval '1 s'"
            "))).* from oauth_tokens as one, generate_series(2, %s) as number",
            (rows,),
        )
        [taken] = database.sql(
            "select pg_total_relation_size('oauth_tokens') as total, pg_indexes_size('oauth_tokens') as indexes"
        )
    _, total, indexes, _ = next(row for row in _rows(SIZES) if row[0] == name)
    measured = (round(taken["total"] / rows), round(taken["indexes"] / rows))
    # the pages that are not full count more among few rows
    assert measured == (
        pytest.approx(_number(total), rel=0.05 if SOAK else 0.15),
        pytest.approx(_number(indexes), rel=0.1 if SOAK else 0.3),
    )


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
