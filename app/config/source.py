"""Where settings come from: the environment, else `.env` in the working directory."""

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
    """Names the settings that are wrong, in one line, without their values."""


def loaded(kind: type[S]) -> S:
    """Read settings of this kind, or raise `SettingsError`."""
    try:
        return kind()
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(problem) for problem in error.errors(include_input=False))) from None
    except SettingsSourceError:
        raise SettingsError("a setting could not be parsed") from None
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{ENV_FILE} cannot be read as UTF-8 text") from None


def _describe(problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    if not problem["loc"]:
        return str(problem["msg"])
    reason = str(problem["msg"])
    return f"{str(problem['loc'][0]).upper()}: {reason[:1].lower()}{reason[1:]}"
