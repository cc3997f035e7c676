"""The JSON list of service keys, as `SERVICE_KEYS_FILE` and `SERVICE_KEYS` hold it."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.callers.service_key import Scope, ServiceKey
from app.tokens.models import SLUG_PATTERN


class KeyListError(Exception):
    """Says which entry of the list is wrong and how, never what it holds."""


class KeyEntry(BaseModel):
    """One entry of the list, as written."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    providers: Annotated[frozenset[Annotated[str, Field(pattern=SLUG_PATTERN)]], Field(min_length=1)] | None = None
    expires_at: AwareDatetime | None = None


_LIST = TypeAdapter(list[KeyEntry])


def parse_key_list(text: str | bytes) -> list[ServiceKey]:
    """Read the list, or raise `KeyListError`."""
    try:
        entries = _LIST.validate_python(json.loads(text, object_pairs_hook=_unique))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            message = "the list of service keys is not valid JSON"
            raise KeyListError(message) from None
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        unknown = first["type"] == "extra_forbidden"  # the member's name is then whatever was written
        where = ".".join(str(part) for part in first["loc"][: 1 if unknown else 2])
        what = "has a member that is not known" if unknown else first["msg"].partition(",")[0]
        message = f"entry {where}: {what}" if where else "the list of service keys is not a list"
        raise KeyListError(message) from None
    keys = [ServiceKey(**dict(entry)) for entry in entries]
    if len({key.sha256 for key in keys}) != len(keys):
        message = "the same key stands in the list twice"
        raise KeyListError(message)
    return keys


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def render_key_list(keys: list[ServiceKey]) -> str:
    """Write the list for people: indented, without what is not set."""
    entries: list[dict[str, Any]] = [
        KeyEntry(
            service=key.service,
            sha256=key.sha256,
            scopes=key.scopes,
            providers=key.providers,
            expires_at=key.expires_at,
        ).model_dump(mode="json", exclude_none=True)
        for key in keys
    ]
    for entry in entries:
        for name in ("scopes", "providers"):
            if name in entry:
                entry[name].sort()
    return json.dumps(entries, indent=2) + "\n"
