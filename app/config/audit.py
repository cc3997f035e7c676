"""The audit trail's settings as types, and alone for who only reads the record."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode

from app.audit.keys import AuditKey, decode_audit_key
from app.config.source import FROM_ENVIRONMENT


def _decodes(key: SecretStr) -> SecretStr:
    try:
        decode_audit_key(key.get_secret_value())
    except ValueError as error:
        raise PydanticCustomError(
            "audit_key", f"{error}; it is 32 random bytes in base64, as `token-vault keys generate` prints"
        ) from None
    return key


def _list_of_keys(value: object) -> object:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise PydanticCustomError("audit_keys", "must be a JSON list of keys") from None
    return value


AuditKeyText = Annotated[SecretStr, AfterValidator(_decodes)]
AuditKeyTexts = Annotated[tuple[AuditKeyText, ...], NoDecode, BeforeValidator(_list_of_keys)]


class AuditReaderSettings(BaseSettings):
    """What it takes to verify and read the record: an auditor has no other secret of the vault."""

    model_config = FROM_ENVIRONMENT

    audit_log: str | None = None
    audit_key: AuditKeyText | None = None
    audit_previous_keys: AuditKeyTexts = ()

    def keys(self) -> list[AuditKey]:
        """Return the keys under which lines may have been signed, the current one first."""
        return [derived(key) for key in (self.audit_key, *self.audit_previous_keys) if key is not None]


def derived(key: SecretStr) -> AuditKey:
    """Return the key that a setting stands for."""
    return AuditKey.derive(decode_audit_key(key.get_secret_value()))


def wrong_names(error: ValidationError) -> str:
    """Name the settings that are wrong, without their values."""
    return "; ".join(
        f"{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors(include_input=False)
    )
