"""JSON in the columns of a row, as every store reads it."""

from __future__ import annotations

import json

import pytest

from app.stores.rows import parse_json

NUMBERS = {
    "an exponent of 308": "1e308",
    "199 digits and an exponent of 99": "9" * 199 + "e99",
    "199 digits and an exponent of 109": "1" + "0" * 198 + "e109",
    "309 digits": "1" + "0" * 308,
    "a long fraction": "0." + "0" * 250 + "1",
    "more digits than a double has": "0.1000000000000000055511151231257827",
    "minus zero": "-0.0",
    "a small exponent": "1E-400",
}
TOO_LARGE = {
    "an exponent of 309": "1e309",
    "a signed exponent": "-1.5E+400",
    "an exponent with a zero in front": "1e0400",
    "199 digits and an exponent of 110": "9" * 199 + "e110",
    "200 digits and an exponent of 110": "1" + "0" * 199 + "e110",
    "230 digits and an exponent of 99": "1" + "0" * 229 + "e99",
    "310 digits and a fraction": "1" + "0" * 309 + ".5",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_has_the_value_that_python_gives_it(name: str) -> None:
    text = f'{{"a": {NUMBERS[name]}, "id": "7e1f"}}'
    assert repr(parse_json(text)) == repr(json.loads(text))


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_number_beyond_a_double_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="double"):
        parse_json(f'{{"a": {TOO_LARGE[name]}}}')


def test_values_are_not_kept_for_other_rows() -> None:
    text = '{"course": "the course of one user"}'
    first, second = parse_json(text), parse_json(text)
    assert first == second
    assert first["course"] is not second["course"]
