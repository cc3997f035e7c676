"""Secret settings from files: `<NAME>_FILE` names a file that holds the value of `<NAME>`.

Docker and Kubernetes mount secrets as files, and systemd passes credentials as files. The `secrets_dir` of
pydantic-settings takes one directory for all of them and ignores a file that it cannot use, so this is a source of its
own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from app.private_file import UnsafeFileError, read_private_file

MAXIMUM_FILE_BYTES: Final = 64 * 1024


class SecretFileError(Exception):
    """The setting and the reason, without path and content: the secret itself may have been given as the path."""


def file_fields(kind: type[BaseSettings]) -> dict[str, str]:
    """Map each secret field to its `<name>_file`, unless that is a field itself, such as `service_keys_file`."""
    fields = kind.model_fields
    files = {name: f"{name}_file" for name, field in fields.items() if _holds_secret(field.annotation)}
    return {name: file for name, file in files.items() if file not in fields}


class SecretFileSource(PydanticBaseSettingsSource):
    """Values of the secret fields whose files are named in the environment or in `.env`, as text."""

    def __init__(
        self, kind: type[BaseSettings], *, environment: PydanticBaseSettingsSource, env_file: PydanticBaseSettingsSource
    ) -> None:
        super().__init__(kind)
        self._files = file_fields(kind)
        self._given = {**_variables(env_file), **_variables(environment)}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  pydantic's
        """Return the value, or `None` if no file is named; raises `SecretFileError`."""
        file = self._files.get(field_name)
        path = None if file is None else self._given.get(file)
        if file is None or not path:
            return None, field_name, False
        if self._given.get(field_name):
            raise SecretFileError(f"{field_name.upper()} and {file.upper()} are both set; set one of them")
        try:
            return read_secret(path), field_name, False
        except SecretFileError as error:
            raise SecretFileError(f"{file.upper()}: {error}") from None

    def __call__(self) -> dict[str, Any]:
        """Return the values by field; raises `SecretFileError` with every problem."""
        values, problems = {}, []
        for name, field in self.settings_cls.model_fields.items():
            try:
                value, _, _ = self.get_field_value(field, name)
            except SecretFileError as error:
                problems.append(str(error))
                continue
            if value is not None:
                values[name] = value
        if problems:
            raise SecretFileError("; ".join(problems))
        return values


def read_secret(path: str) -> str:
    """Return the text of the file without line breaks at its end; raises `SecretFileError`."""
    try:
        content = read_private_file(Path(path), maximum_bytes=MAXIMUM_FILE_BYTES)
    except UnsafeFileError as error:
        raise SecretFileError(f"what it names cannot be used: {error}") from None
    except OSError as error:
        raise SecretFileError(f"the file that it names cannot be read: {error.strerror}") from None
    except ValueError:  # a path with a NUL or a lone surrogate
        raise SecretFileError("is not a path") from None
    try:
        text = content.decode("utf-8-sig").rstrip("\r\n")  # a byte order mark would change the secret
    except UnicodeDecodeError:
        raise SecretFileError("the file that it names is not UTF-8 text") from None
    if "\0" in text:
        raise SecretFileError("the file that it names is not UTF-8 text")
    if not text.strip():
        raise SecretFileError("the file that it names is empty")
    return text


def _holds_secret(annotation: Any) -> bool:  # noqa: ANN401  any type
    return annotation is SecretStr or any(map(_holds_secret, get_args(annotation)))


def _variables(source: PydanticBaseSettingsSource) -> dict[str, str | None]:
    """Return the variables of a source by lower-case name, without empty ones."""
    return dict(source.env_vars) if isinstance(source, EnvSettingsSource) else {}
