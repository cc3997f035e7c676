"""Names that are no settings but may have been meant as one: in `.env`, and in the environment."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from io import StringIO
from typing import Final

from dotenv.parser import Binding, parse_stream
from pydantic_settings import BaseSettings

from app.config.secret_files import file_fields

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_LINE_BREAK: Final = re.compile(r"\r\n|\n|\r")
_SHORTEST_TYPO: Final = 6  # a name like HOST or PORT is one letter away from too many others
_OF_OTHERS: Final = ("AWS_ENDPOINT_URL_",)  # one variable for each service of AWS


def setting_names(kind: type[BaseSettings]) -> frozenset[str]:
    """Return the name of each setting, and those that name the files of secret ones."""
    return frozenset(name.upper() for name in (*kind.model_fields, *file_fields(kind).values()))


def problems_in_env_file(text: str, names: Collection[str]) -> list[str]:
    """Return a problem for each statement of `.env` that sets none of these names.

    A name is quoted only if it resembles a setting's: the second line of an unquoted secret looks like a name as well.
    """
    return [problem for one in parse_stream(StringIO(text)) if (problem := _problem(one, names))]


def _problem(statement: Binding, names: Collection[str]) -> str | None:
    text = statement.original.string
    blank = text[: len(text) - len(text.lstrip())]
    line = f"line {statement.original.line + len(_LINE_BREAK.findall(blank))}"
    if statement.error:
        return f"{line} is not NAME=value"
    if statement.key is None:  # a comment, or blank
        return None
    name = statement.key.upper()
    if name in names:
        return f"{line}: {name} has no value, not even an empty one" if statement.value is None else None
    nearest = get_close_matches(name, names, n=1)
    if nearest and _VARIABLE.fullmatch(name):
        return f"{line}: {name} is not a setting; did you mean {nearest[0]}?"
    return f"{line}: the name is not that of a setting"


def misspelt_variables(variables: Iterable[str], names: Collection[str]) -> Iterator[str]:
    """Yield a warning for each variable that is one typo away from one of these names."""
    for variable in sorted(variables):
        name = variable.upper()
        if name in names or name.startswith(_OF_OTHERS):
            continue
        for meant in sorted(names):
            if len(meant) >= _SHORTEST_TYPO and _is_one_typo(name, meant):
                yield f"the environment variable {variable} is not a setting; did you mean {meant}?"


def _is_one_typo(one: str, other: str) -> bool:
    """Whether one character is added, missing or different, or two neighbours are swapped."""
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    one, other = one[start:], other[start:]
    end = 0
    while end < min(len(one), len(other)) and one[-1 - end] == other[-1 - end]:
        end += 1
    one, other = one[: len(one) - end], other[: len(other) - end]
    return max(len(one), len(other)) == 1 or (len(one) == 2 and one == other[::-1])  # noqa: PLR2004  two neighbours
