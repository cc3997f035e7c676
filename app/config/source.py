"""Read settings from the environment, from `.env` in the working directory, and from the files of secret settings.

The environment wins over `.env`. A secret that both a variable and a file give is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SettingsSourceError

from app.config.secret_files import SecretFileError, SecretFileSource
from app.config.setting_names import problems_in_env_file, setting_names

ENV_FILE: Final = Path(".env")
_SHOWN_PROBLEMS: Final = 5


class EnvironmentSettings(BaseSettings):
    """Base of every class of settings."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  reads a directory, see secret_files
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        secret_files = SecretFileSource(settings_cls, environment=env_settings, env_file=dotenv_settings)
        return init_settings, secret_files, env_settings, dotenv_settings


S = TypeVar("S", bound=BaseSettings)


class SettingsError(Exception):
    """One line that names every wrong setting, never its value."""


def loaded(kind: type[S], *, names_of: type[BaseSettings] | None = None) -> S:
    """Read settings of this class, or raise `SettingsError`.

    With `names_of`, a name in `.env` that these settings do not have is an error.
    """
    try:
        if ENV_FILE.is_fifo():
            raise SettingsError(f"{ENV_FILE} is not a regular file")  # it would be read more than once
        if names_of is not None and ENV_FILE.is_file():
            _require_known_names(ENV_FILE.read_text("utf-8"), names_of)
        return kind()
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(problem) for problem in error.errors(include_input=False))) from None
    except SecretFileError as error:
        raise SettingsError(str(error)) from None
    except SettingsSourceError:
        raise SettingsError("a setting cannot be parsed") from None
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{ENV_FILE} cannot be read as UTF-8 text") from None


def _require_known_names(text: str, kind: type[BaseSettings]) -> None:
    problems = problems_in_env_file(text, setting_names(kind))
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        shown = [*problems[:_SHOWN_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
        raise SettingsError(f"{ENV_FILE}, {'; '.join(shown)}")


def _describe(problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    reason = str(problem["msg"])
    if not problem["loc"]:
        return reason
    return f"{str(problem['loc'][0]).upper()}: {reason[:1].lower()}{reason[1:]}"
