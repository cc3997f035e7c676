"""What a caller learns of a field that a body does not have: its name, and close names.

A name that may be a secret is not repeated: a caller who swaps keys and values would find its token in a log.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Final, get_args

from pydantic import BaseModel

from app.api.token_response import FOREIGN_MEMBERS, TOKEN_RESPONSE

# words of lower-case letters, joined by an underscore, a hyphen or a capital: secrets have digits or runs of capitals
_FIELD_NAME: Final = re.compile(r"[a-z]+(?:[_-][a-z]+|[A-Z][a-z]+)*")
_MAXIMUM_CHARACTERS: Final = 40
_SUGGESTIONS: Final = 2
_SIMILARITY: Final = 0.55  # of difflib: `token` and `access_token` have 0.59

NOT_NAMED: Final = "has an unknown field, whose name is not repeated here"


def may_be_named(name: object) -> bool:
    """Return whether the name is that of a field, and no secret."""
    return isinstance(name, str) and len(name) <= _MAXIMUM_CHARACTERS and _FIELD_NAME.fullmatch(name) is not None


def describe(model: type[BaseModel], location: list[Any]) -> str:
    """Return the message for an unknown field at this location in a body of the model."""
    name = str(location[-1])
    known = [*_model_at(model, location[:-1]).model_fields]
    close = get_close_matches(_snake_case(name), known, n=_SUGGESTIONS, cutoff=_SIMILARITY)
    message = "is not a known field"
    if close:
        message += f": did you mean {' or '.join(close)}?"
    if name in FOREIGN_MEMBERS and "access_token" in known:
        message += f" A provider's own token answer is sent as {TOKEN_RESPONSE}."
    return message


def _model_at(model: type[BaseModel], location: list[Any]) -> type[BaseModel]:
    """Return the model of the object at this location; a list's items are named by their index."""
    for part in location:
        if isinstance(part, str):
            nested = get_args(model.model_fields[part].annotation)
            model = next(one for one in nested if isinstance(one, type) and issubclass(one, BaseModel))
    return model


def _snake_case(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: f"_{match[0].lower()}", name).replace("-", "_")
