"""Settings of the audit trail."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

from app.audit.signing_key import AuditKey, decode_audit_key
from app.config.source import EnvironmentSettings


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


class AuditReaderSettings(EnvironmentSettings):
    """The settings that verifying and reading the audit trail need; an auditor has no other secret of the vault."""

    audit_log: str | None = None
    audit_key: AuditKeyText | None = None
    audit_previous_keys: AuditKeyTexts = ()

    def keys(self) -> list[AuditKey]:
        """Return the keys that lines may be signed with, the current one first."""
        return [audit_key(text) for text in (self.audit_key, *self.audit_previous_keys) if text is not None]


def audit_key(text: SecretStr) -> AuditKey:
    """Derive the audit key from a setting."""
    return AuditKey.derive(decode_audit_key(text.get_secret_value()))
