"""JSON objects without duplicate members (I-JSON, RFC 7493 §2.3); `json.loads` silently keeps the last one."""

from __future__ import annotations

from typing import Any


class DuplicateMemberError(ValueError):
    """An object has two members of one name."""


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object, as `object_pairs_hook` of `json`; raises `DuplicateMemberError`."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DuplicateMemberError
    return members
