"""What is wrong with a request, said without repeating any of it.

pydantic's own messages quote what was sent, and a location may be a key that the caller made up. Only the type of an
error and the names that our schemas know leave this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

_OWN = "vault_"  # error types that our own validators raise; their messages hold no input

_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "string_type": "must be a string",
    "string_too_short": "is too short",
    "string_too_long": "is too long",
    "string_pattern_mismatch": "does not have the required form",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "greater_than_equal": "is too small",
    "less_than_equal": "is too large",
    "list_type": "must be a list",
    "too_long": "is too long",
    "too_short": "is too short",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "enum": "is not one of the allowed values",
    "literal_error": "is not one of the allowed values",
}


def invalid_request(problems: Sequence[Any]) -> InvalidRequest:
    """Translate pydantic's error list."""
    described = tuple(dict.fromkeys((_field(problem), _message(problem)) for problem in problems))
    summary = "; ".join(f"{field} {message}" for field, message in described[:5])
    return InvalidRequest(summary, problems=described)


def _message(problem: dict[str, Any]) -> str:
    kind = problem["type"]
    if kind.startswith(_OWN):
        return str(problem["msg"])
    return _MESSAGES.get(kind, "is not valid")


def _field(problem: dict[str, Any]) -> str:
    """Name the field by the parts of its location that are ours; an unknown key is the caller's text."""
    location = [part for part in problem["loc"] if part not in {"body", "path", "query", "header"}]
    if problem["type"] == "extra_forbidden":
        location = location[:-1]
    if "metadata" in location:
        location = location[: location.index("metadata") + 1]
    return ".".join(str(part) for part in location) or "body"
