"""Fields that several bodies share, with their validation and their JSON schema."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from app.errors import InvalidRequest
from app.tokens.models import (
    HTTPS_URL,
    MAXIMUM_TOKEN_CHARACTERS,
    MAXIMUM_URL_CHARACTERS,
    RESERVED_METADATA,
    SLUG_PATTERN,
    UUID_PATTERN,
    parse_base_url,
)

EXAMPLE_USER_ID = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _rfc3339(value: object) -> object:
    if value is not None and not (isinstance(value, str) and _RFC3339.fullmatch(value)):
        raise PydanticCustomError("vault_time", "must be an RFC 3339 time with an offset, like 2027-03-23T09:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("vault_time", "is outside the years 1 to 9999 in UTC") from None


def _base_url(value: str) -> str:
    try:
        return parse_base_url(value)
    except InvalidRequest as error:
        raise PydanticCustomError("vault_base_url", error.detail.removeprefix("base_url ")) from None


UserId = Annotated[str, Field(pattern=UUID_PATTERN, json_schema_extra={"format": "uuid"})]
Slug = Annotated[str, Field(pattern=SLUG_PATTERN)]
SecretText = Annotated[SecretStr, Field(min_length=1, max_length=MAXIMUM_TOKEN_CHARACTERS)]
Timestamp = Annotated[datetime, BeforeValidator(_rfc3339), AfterValidator(_in_utc)]
_TIMESTAMP: Final = TypeAdapter(Timestamp)


def parse_time(name: str, text: str) -> datetime:
    """Return the time of a query parameter, or raise `InvalidRequest`."""
    try:
        return _TIMESTAMP.validate_python(text)
    except ValidationError:
        raise InvalidRequest.of_field(
            name, f"{name} must be an RFC 3339 time with an offset, like 2027-03-23T09:00:00Z"
        ) from None


BaseUrl = Annotated[
    str,
    AfterValidator(_base_url),
    Field(
        json_schema_extra={
            "format": "uri",
            "pattern": f"^{HTTPS_URL.pattern}$",
            "maxLength": MAXIMUM_URL_CHARACTERS,
        }
    ),
]
# spelt out because ECMAScript, Rust and Python disagree whether \s matches these; OpenAPI and the vault must agree
_NO_SPACE = r"[^@\s\u001c-\u001f\u0085\ufeff]"
Email = Annotated[str, Field(pattern=f"^{_NO_SPACE}+@{_NO_SPACE}+$", max_length=320)]
Metadata = Annotated[
    dict[str, Any],
    Field(json_schema_extra={"propertyNames": {"type": "string", "not": {"enum": sorted(RESERVED_METADATA)}}}),
]
Value = TypeVar("Value")


def _not_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("vault_null", "must not be null: leave it out")
    return value


class _NotNull:
    """Leaves null out of the JSON schema of an optional field."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        [schema] = (one for one in handler(core)["anyOf"] if one != {"type": "null"})
        return cast("JsonSchemaValue", schema)


# a field that may be left out, which is `None` here, and is no null otherwise
Present = Annotated[Value | None, BeforeValidator(_not_null), _NotNull()]
ProviderScope = Annotated[str, Field(min_length=1, max_length=512)]
