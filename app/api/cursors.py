"""Cursors: where the next page of a list begins.

A cursor holds the id of a row and nothing else, so a forged one begins elsewhere and shows no more than its caller may
see: filters and permissions come with each request.
"""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

from app.errors import InvalidRequest, MalformedCiphertext
from app.security import base64url

CURSOR_PATTERN: Final = r"^[A-Za-z0-9_-]{21}[AQgw]$"
_OTHER_ID: Final = re.compile(r"~[A-Za-z0-9_-]{1,400}")
_OF_UUID: Final = re.compile(CURSOR_PATTERN)
_RAW: Final = "surrogateescape"  # a row id of SQLite may be any bytes


def cursor_after(row_id: str) -> str:
    """Return the cursor of the page after a row: the 16 bytes of its id, or `~` and the bytes of any other id."""
    try:
        uuid = UUID(row_id)
    except ValueError:
        uuid = None
    if uuid is not None and str(uuid) == row_id:
        return base64url.encode(uuid.bytes)
    return "~" + base64url.encode(row_id.encode(errors=_RAW))


def row_id_of(cursor: str) -> str:
    """Return the id of the row, or raise `InvalidRequest`."""
    try:
        if _OF_UUID.fullmatch(cursor):
            return str(UUID(bytes=base64url.decode(cursor)))
        if _OTHER_ID.fullmatch(cursor):
            return base64url.decode(cursor[1:]).decode(errors=_RAW)
    except MalformedCiphertext:
        pass
    raise InvalidRequest.of_field("cursor", "cursor must be the next_cursor of an answer")
