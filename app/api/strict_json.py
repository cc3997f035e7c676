"""JSON as RFC 8259 and I-JSON (RFC 7493) mean it, from a caller who may be hostile."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from app.errors import MalformedBody

MAXIMUM_DEPTH = 32


def parse_strict_json(body: bytes) -> Any:  # noqa: ANN401  JSON
    """Return the value, or raise `MalformedBody`.

    Refused: anything but UTF-8; duplicate keys, of which other parsers silently keep one; `NaN` and numbers beyond a
    double; lone surrogates and NUL, which PostgreSQL cannot store; more than 32 levels. A number without a fraction
    comes back as `int`, so that every store returns it the same.
    """
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_number
        )
    except UnicodeDecodeError:
        _refuse("the body is not UTF-8")
    except RecursionError:
        _refuse(f"the body nests deeper than {MAXIMUM_DEPTH} levels")
    except ValueError:  # its text quotes the body
        _refuse("the body is not valid JSON")
    _demand_storable(value, MAXIMUM_DEPTH)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _refuse("an object of the body has the same key twice")
    return members


def _refuse_constant(_: str) -> NoReturn:
    _refuse("the body holds NaN or Infinity, which are not JSON")


def _number(text: str) -> int | float:
    number = float(text)
    if not math.isfinite(number):
        _refuse("the body holds a number that no double can hold")
    return int(number) if number.is_integer() else number


def _demand_storable(value: object, levels: int) -> None:
    if isinstance(value, str):
        _demand_storable_text(value)
    elif isinstance(value, dict | list):
        if levels == 0:
            _refuse(f"the body nests deeper than {MAXIMUM_DEPTH} levels")
        if isinstance(value, dict):
            for key, member in value.items():
                _demand_storable_text(key)
                _demand_storable(member, levels - 1)
        else:
            for item in value:
                _demand_storable(item, levels - 1)


def _demand_storable_text(text: str) -> None:
    if "\0" in text:
        _refuse("the body holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse("the body holds a lone surrogate")


def _refuse(message: str) -> NoReturn:
    raise MalformedBody(message) from None
