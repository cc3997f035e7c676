"""Stricter JSON than Python's: hooks for `json`, and the depth of a value (RFC 8259, I-JSON in RFC 7493)."""

from __future__ import annotations

import math
from typing import Any, NoReturn


class StrictJsonError(ValueError):
    """What the text does, in words without any of it, such as "contains NaN or Infinity, which are not JSON"."""


class DuplicateMemberError(ValueError):
    """An object has two members of one name."""


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object, as `object_pairs_hook` of `json`, which silently keeps the last member of a name.

    Raises `DuplicateMemberError`.
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DuplicateMemberError
    return members


def refuse_constant(_: str) -> NoReturn:
    """Raise `StrictJsonError`, as `parse_constant` of `json`."""
    raise StrictJsonError("contains NaN or Infinity, which are not JSON")


def finite(text: str) -> float:
    """Return the number, as `parse_float` of `json`; raises `StrictJsonError` if it does not fit into a double."""
    number = float(text)
    if not math.isfinite(number):
        raise StrictJsonError("contains a number that does not fit into a double")
    return number


def require_depth(value: object, *, levels: int) -> None:
    """Raise `StrictJsonError` if arrays and objects are nested deeper than this."""
    too_deep = StrictJsonError(f"has more than {levels} levels of nesting")

    def descend(value: dict[str, Any] | list[Any], left: int) -> None:
        if left == 0:
            raise too_deep
        for member in value.values() if isinstance(value, dict) else value:
            if isinstance(member, (dict, list)):
                descend(member, left - 1)

    if isinstance(value, (dict, list)):
        descend(value, levels)
