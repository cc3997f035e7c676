"""All settings. `app.config.source` describes where they come from and how a wrong one is reported."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

from app.config.audit import AuditKeyText, AuditKeyTexts
from app.config.database_url import DatabaseUrl, DatabaseUrlError, database_url_source
from app.config.listening import ListeningSettings, is_loopback
from app.config.setting_names import misspelt_variables, setting_names
from app.config.source import ENV_FILE, EnvironmentSettings, SettingsError, loaded
from app.config.user_jwt import JwtSecret, KeySetUrl
from app.security.keyring import MINIMUM_KEY_BYTES, RECOMMENDED_KEY_BYTES, Keyring, decode_key_text
from app.security.kms.connection import KmsConnection
from app.strict_json import unique_members

__all__ = ["ENV_FILE", "METRICS_FOLDER", "Settings", "SettingsError", "load_settings", "metrics_folder"]
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client reads it too, on import
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
KeyVersion = Annotated[int, Field(ge=1, le=999_999_999)]


class Settings(ListeningSettings):
    """Settings of the process; .env.example describes each one."""

    token_store: Literal["sqlite", "postgres", "supabase"] = "sqlite"  # noqa: S105  a store's name
    sqlite_path: Path = Path("data/vault.db")
    database_url: SecretStr | None = None
    database_url_file: Path | None = None
    database_pool_size: Annotated[int, Field(ge=1, le=1_000)] = 10
    supabase_url: str | None = None
    supabase_service_key: SecretStr | None = None

    token_encryption_key: SecretStr | None = None
    encryption_key_version: KeyVersion = 1
    token_encryption_previous_keys: Annotated[dict[KeyVersion, SecretStr], NoDecode] = {}  # noqa: RUF012  pydantic copies it
    min_key_version: KeyVersion = 1
    allow_legacy_formats: bool = True

    use_kms: bool = False
    kms_key_id: str | None = None
    kms_previous_key_ids: Annotated[tuple[str, ...], NoDecode] = ()
    aws_region: str | None = None
    aws_access_key_id: SecretStr | None = None
    aws_secret_access_key: SecretStr | None = None
    aws_session_token: SecretStr | None = None
    aws_endpoint_url_kms: str | None = None
    data_key_max_age_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    data_key_max_messages: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    data_key_cache_size: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    kms_fallback_to_local: bool = False

    rewrap_on_read: bool = True
    rewrap_legacy: bool = False
    rewrap_interval_seconds: Annotated[float, Field(ge=0, le=31 * 86_400)] = 0

    oauth_providers_file: Path | None = None
    oauth_providers: SecretStr | None = None
    refresh_interval_seconds: Annotated[float, Field(ge=0, le=86_400)] = 0
    refresh_spool_dir: Path | None = None

    service_keys_file: Path | None = None
    service_keys: SecretStr | None = None
    user_jwt_issuer: str | None = None
    user_jwt_audience: str = "authenticated"
    user_jwt_jwks_url: KeySetUrl | None = None
    user_jwt_secret: JwtSecret | None = None

    audit_log: str | None = None
    audit_key: AuditKeyText | None = None
    audit_previous_keys: AuditKeyTexts = ()
    audit_sync: Literal["always", "interval", "off"] = "interval"
    audit_max_bytes: Annotated[int, Field(ge=4096, le=2**40)] = 64 * 1024 * 1024

    rate_limit_per_second: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = 0
    maximum_concurrent_per_service: Annotated[int, Field(ge=0, le=100_000)] = 256
    maximum_concurrent: Annotated[int, Field(ge=0, le=100_000)] = 512

    shutdown_drain_seconds: Annotated[float, Field(ge=0, le=600)] = 0
    api_docs: bool = True
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console"] = "json"
    metrics: bool = True
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    metrics_census_seconds: Annotated[float, Field(ge=0, le=31 * 86_400)] = 300
    otel_traces: bool = False

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("supabase_url", "aws_endpoint_url_kms")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("https://", "http://")):
            raise PydanticCustomError("url", "must start with https:// (or http:// for a local stand-in)")
        if not _names_a_host(value):
            raise PydanticCustomError("url", "must be a URL with a host and no path, like https://abcdefgh.supabase.co")
        return value.rstrip("/")

    @field_validator("supabase_service_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        text = "" if value is None else value.get_secret_value()
        if not (text.isascii() and text.isprintable() and " " not in text):
            raise PydanticCustomError("header", "contains a character that no key has, such as a space or a line break")
        return value

    @field_validator("token_encryption_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _require_length(value)
        return value

    @field_validator("token_encryption_previous_keys", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        kind = "previous_keys"
        if isinstance(value, str):
            try:
                value = json.loads(value, object_pairs_hook=unique_members)
            except (ValueError, RecursionError):
                raise PydanticCustomError(
                    kind, 'must be a JSON object from key version to key, like {"1": "…"}, with each version once'
                ) from None
            if isinstance(value, dict) and not all(_VERSION.fullmatch(version) for version in value):
                raise PydanticCustomError(kind, 'must map key versions to keys, like {"1": "…"}; versions count from 1')
        return value

    @field_validator("kms_previous_key_ids", mode="before")
    @classmethod
    def _list_from_json(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise PydanticCustomError(
                    "previous_key_ids", "must be a JSON list of key ids, ARNs or aliases"
                ) from None
        if isinstance(value, list) and not all(value):
            raise PydanticCustomError("previous_key_ids", "contains an empty name")
        return value

    @field_validator("token_encryption_previous_keys")
    @classmethod
    def _each_long_enough(cls, value: dict[int, SecretStr]) -> dict[int, SecretStr]:
        for key in value.values():
            _require_length(key)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problem = next(self._inconsistencies(), None)
        if problem is not None:
            raise PydanticCustomError("inconsistent", problem)
        return self

    def _inconsistencies(self) -> Iterator[str]:
        yield from self._wrong_store()
        yield from self._wrong_kms()
        yield from self._wrong_master_keys()
        if self.metrics_port == self.port:
            yield "METRICS_PORT is PORT; the second listener needs a port of its own"
        yield from self._wrong_user_jwt()
        if self.oauth_providers is not None and self.oauth_providers_file is not None:
            yield "OAUTH_PROVIDERS and OAUTH_PROVIDERS_FILE are both set; set one of them"
        if self.audit_log is not None and self.audit_key is None:
            yield "AUDIT_KEY is needed because AUDIT_LOG is set: 32 random bytes in base64"

    def _wrong_store(self) -> Iterator[str]:
        if self.database_url is not None and self.database_url_file is not None:
            yield "DATABASE_URL and DATABASE_URL_FILE are both set; set one of them"
        elif self.token_store == "postgres":  # noqa: S105  a store's name
            name = "DATABASE_URL" if self.database_url_file is None else "DATABASE_URL_FILE"
            if self.database_url is None and self.database_url_file is None:
                yield "DATABASE_URL is needed because TOKEN_STORE is postgres"
                return
            try:
                self.read_database_url()
            except DatabaseUrlError as error:
                yield f"{name}: {error}"
        if self.token_store != "supabase":  # noqa: S105  a store's name
            return
        if self.supabase_url is None:
            yield "SUPABASE_URL is needed because TOKEN_STORE is supabase"
        if self.supabase_service_key is None:
            yield "SUPABASE_SERVICE_KEY is needed because TOKEN_STORE is supabase"

    def _wrong_kms(self) -> Iterator[str]:
        if self.use_kms and self.kms_key_id is None:
            yield "KMS_KEY_ID is needed because USE_KMS is true: the id, ARN or alias of a symmetric key"
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            yield "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are needed together, or neither"

    def _wrong_master_keys(self) -> Iterator[str]:
        if self.token_encryption_key is None:
            if self.kms_fallback_to_local:
                yield "TOKEN_ENCRYPTION_KEY is needed because KMS_FALLBACK_TO_LOCAL is true"
            if self.token_encryption_previous_keys:
                yield "TOKEN_ENCRYPTION_KEY is needed because TOKEN_ENCRYPTION_PREVIOUS_KEYS is set"
            if not self.use_kms:
                yield "TOKEN_ENCRYPTION_KEY is needed: 32 random bytes in base64, see `token-vault keys generate`"
        if self.encryption_key_version in self.token_encryption_previous_keys:
            yield "TOKEN_ENCRYPTION_PREVIOUS_KEYS contains ENCRYPTION_KEY_VERSION, whose key is TOKEN_ENCRYPTION_KEY"
        if self.min_key_version > self.encryption_key_version:
            yield "MIN_KEY_VERSION is above ENCRYPTION_KEY_VERSION, so new tokens could not be read"

    def _wrong_user_jwt(self) -> Iterator[str]:
        keys = [self.user_jwt_jwks_url, self.user_jwt_secret]
        if None not in keys:
            yield "USER_JWT_JWKS_URL and USER_JWT_SECRET exclude each other: the one that is set decides the algorithms"
        elif any(keys) and self.user_jwt_issuer is None:
            yield "USER_JWT_ISSUER is needed because USER_JWT_JWKS_URL or USER_JWT_SECRET is set"
        elif self.user_jwt_issuer is not None and not any(keys):
            yield "USER_JWT_JWKS_URL or USER_JWT_SECRET is needed because USER_JWT_ISSUER is set"

    def keyring(self) -> Keyring | None:
        """Return the decoded master keys, or `None` if none is set."""
        if self.token_encryption_key is None:
            return None
        keys = {version: _decode(key) for version, key in self.token_encryption_previous_keys.items()}
        keys[self.encryption_key_version] = _decode(self.token_encryption_key)
        return Keyring(self.encryption_key_version, keys, self.min_key_version)

    def read_database_url(self) -> DatabaseUrl:
        """Return DATABASE_URL, read again if it is in a file; raises `DatabaseUrlError`."""
        return database_url_source(self.database_url, self.database_url_file)()

    def kms_connection(self) -> KmsConnection:
        return KmsConnection(
            key_id=self.kms_key_id,
            region=self.aws_region,
            endpoint_url=self.aws_endpoint_url_kms,
            access_key_id=self.aws_access_key_id,
            secret_access_key=self.aws_secret_access_key,
            session_token=self.aws_session_token,
        )

    def warnings(self) -> Iterator[str]:
        """Yield one line for each setting that is allowed but weak or without effect."""
        keys = {"TOKEN_ENCRYPTION_KEY": self.token_encryption_key}
        for version, key in self.token_encryption_previous_keys.items():
            keys[f"TOKEN_ENCRYPTION_PREVIOUS_KEYS, version {version}"] = key
        for name, secret in keys.items():
            if secret is not None and len(_decode(secret)) < RECOMMENDED_KEY_BYTES:
                yield f"{name} has less than {RECOMMENDED_KEY_BYTES} bytes after decoding; use 32 random bytes"
        if self.service_keys_file is None and self.service_keys is None:
            yield "neither SERVICE_KEYS_FILE nor SERVICE_KEYS is set: every /v1 call is answered with 401"
        yield from self._audit_warnings()
        yield from self._without_effect()
        if self.aws_endpoint_url_kms is not None and _crosses_a_network(self.aws_endpoint_url_kms):
            yield "AWS_ENDPOINT_URL_KMS is not https: data keys cross the network unencrypted"
        if self.supabase_url is not None and _crosses_a_network(self.supabase_url):
            yield "SUPABASE_URL is not https: the service key and all rows cross the network unencrypted"
        yield from self._database_warnings()
        yield from misspelt_variables(os.environ, setting_names(Settings))

    def _without_effect(self) -> Iterator[str]:
        if self.rewrap_legacy and not self.allow_legacy_formats:
            yield "REWRAP_LEGACY has no effect while ALLOW_LEGACY_FORMATS is false"
        if self.kms_fallback_to_local and not self.use_kms:
            yield "KMS_FALLBACK_TO_LOCAL has no effect while USE_KMS is false"
        if self.kms_previous_key_ids and self.kms_key_id is None:
            yield "KMS_PREVIOUS_KEY_IDS has no effect without KMS_KEY_ID"
        if self.refresh_spool_dir is not None and self.oauth_providers is None and self.oauth_providers_file is None:
            yield "REFRESH_SPOOL_DIR has no effect without OAUTH_PROVIDERS_FILE"
        if self.metrics_port is not None and not (self.metrics or self.api_docs):
            yield "METRICS_PORT has no effect while METRICS and API_DOCS are false"

    def _database_warnings(self) -> Iterator[str]:
        if self.token_store != "postgres":  # noqa: S105  a store's name
            return
        url = self.read_database_url()
        if url.crosses_network and not url.verifies_server:
            yield (
                f"DATABASE_URL has sslmode={url.ssl_mode}: another server can pose as the database and read the "
                "password and all rows"
            )

    def _audit_warnings(self) -> Iterator[str]:
        if self.audit_log is None:
            yield "AUDIT_LOG is not set: there is no proof of who has read which token"
        elif self.audit_sync == "off":
            yield "AUDIT_SYNC is off: the last events before a power loss may be missing from the audit trail"


def load_settings() -> Settings:
    """Read the environment and `.env`, or raise `SettingsError`."""
    return loaded(Settings, names_of=Settings)


def metrics_folder() -> Path | None:
    """Return the folder that several workers share for their metrics. It is no setting, because `serve` creates it."""
    folder = os.environ.get(METRICS_FOLDER)
    return None if folder is None else Path(folder)


def _decode(key: SecretStr) -> bytes:
    return decode_key_text(key.get_secret_value())


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        bare = not (parts.username or parts.password or parts.query or parts.fragment or parts.path.strip("/"))
        return bool(parts.hostname) and bare and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        return False


def _crosses_a_network(url: str) -> bool:
    return url.startswith("http://") and not is_loopback(urlsplit(url).hostname or "")


def _require_length(key: SecretStr) -> None:
    if len(_decode(key)) < MINIMUM_KEY_BYTES:
        raise PydanticCustomError("key_length", f"has less than {MINIMUM_KEY_BYTES} bytes after decoding")


class _KmsLocation(EnvironmentSettings):
    """The settings of `token-vault kms setup`, which runs before the others are complete."""

    kms_key_id: str | None = None
    aws_region: str | None = None
    aws_endpoint_url_kms: str | None = None


def load_admin_connection(*, region: str | None) -> KmsConnection:
    """Return the KMS and the key that the service will use, without credentials; raises `SettingsError`."""
    location = loaded(_KmsLocation, names_of=Settings)
    return KmsConnection(
        key_id=location.kms_key_id,
        region=region or location.aws_region,
        endpoint_url=location.aws_endpoint_url_kms,
    )
