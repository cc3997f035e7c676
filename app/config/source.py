"""Read settings from the environment and from `.env` in the working directory; the environment wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SettingsSourceError

ENV_FILE: Final = Path(".env")
FROM_ENVIRONMENT: Final = SettingsConfigDict(
    env_file=ENV_FILE,
    env_file_encoding="utf-8",
    env_ignore_empty=True,
    extra="ignore",
    frozen=True,
    hide_input_in_errors=True,
)
S = TypeVar("S", bound=BaseSettings)


class SettingsError(Exception):
    """One line that names every wrong setting, never its value."""


def loaded(kind: type[S]) -> S:
    """Read settings of this class, or raise `SettingsError`."""
    try:
        return kind()
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(problem) for problem in error.errors(include_input=False))) from None
    except SettingsSourceError:
        raise SettingsError("a setting cannot be parsed") from None
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{ENV_FILE} cannot be read as UTF-8 text") from None


def _describe(problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    reason = str(problem["msg"])
    if not problem["loc"]:
        return reason
    return f"{str(problem['loc'][0]).upper()}: {reason[:1].lower()}{reason[1:]}"
