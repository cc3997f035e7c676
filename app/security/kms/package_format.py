"""The text of a KMS envelope: `kms:` and compact JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from app.errors import MalformedCiphertext
from app.security import base64url
from app.security.aead import COMMITMENT_BYTES, NONCE_BYTES, TAG_BYTES, Box
from app.strict_json import unique_members

PREFIX: Final = "kms:"
FORMAT: Final = 1
_KEYS: Final = frozenset({"fmt", "kid", "id", "dk", "cm", "n", "ct"})
MAXIMUM_WRAPPED_BYTES: Final = 6144  # what KMS Decrypt accepts
MAXIMUM_NAME_CHARACTERS: Final = 2048

# The two halves of a package as the vault writes it: every member of its size, no name that needs escaping. A package
# that does not match is read as JSON. Measured, interleaved: with JSON for every package a decryption with a cached key
# takes 1.8 to 2.2 times as long, and with JSON for each half and a cached head 1.24 to 1.31 times.
_HEAD: Final = re.compile(
    r'kms:\{"fmt":1,"kid":"([ !#-\[\]-~]{1,2048})","id":"([ !#-\[\]-~]{1,2048})",'
    r'"dk":"([\w-]{2,8192})","cm":"([\w-]{43})"',
    re.ASCII,
)
_REST: Final = re.compile(r'([\w-]{16})","ct":"([\w-]{22,})"\}', re.ASCII)
_REMEMBERED_HEADS: Final = 10_000  # the default number of cached data keys


class Package(NamedTuple):
    """The members `kid`, `id` and `dk`, and the box of `cm`, `n` and `ct`."""

    key_name: str
    tracking_id: str
    wrapped: bytes
    box: Box

    @classmethod
    def decode(cls, text: str) -> Package:
        """Parse the text; raises `MalformedCiphertext` unless it has each member once, of its type and size."""
        first, _, last = text.partition(',"n":"')
        rest = _REST.fullmatch(last)
        common = _read_head(first) if rest else None
        if rest and common:
            key_name, tracking_id, wrapped, commitment = common
            nonce, ciphertext = rest.groups()
            box = Box(commitment, base64url.decode(nonce), base64url.decode(ciphertext))
            return cls(key_name, tracking_id, wrapped, box)
        members = _members(text)
        box = Box(
            _bytes(members, "cm", COMMITMENT_BYTES, COMMITMENT_BYTES),
            _bytes(members, "n", NONCE_BYTES, NONCE_BYTES),
            _bytes(members, "ct", TAG_BYTES, None),
        )
        wrapped = _bytes(members, "dk", 1, MAXIMUM_WRAPPED_BYTES)
        return cls(_name(members, "kid"), _name(members, "id"), wrapped, box)


def head(key_name: str, tracking_id: str, wrapped: bytes, commitment: bytes) -> str:
    """Return the beginning that all packages of one data key have in common."""
    members = {
        "fmt": FORMAT,
        "kid": key_name,
        "id": tracking_id,
        "dk": base64url.encode(wrapped),
        "cm": base64url.encode(commitment),
    }
    return PREFIX + _to_json(members).removesuffix("}")


@lru_cache(maxsize=_REMEMBERED_HEADS)
def _read_head(text: str) -> tuple[str, str, bytes, bytes] | None:
    """Parse a text that `head` wrote, or return `None`. Cached, because a data key has many packages."""
    found = _HEAD.fullmatch(text)
    if found is None:
        return None
    key_name, tracking_id, wrapped, commitment = found.groups()
    return key_name, tracking_id, base64url.decode(wrapped), base64url.decode(commitment)


def complete(head: str, box: Box) -> str:
    """Return the package of a box of that data key."""
    return f'{head},"n":"{base64url.encode(box.nonce)}","ct":"{base64url.encode(box.ciphertext)}"}}'


def _members(text: str) -> Mapping[str, Any]:
    try:
        members = _from_json(text.removeprefix(PREFIX))
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict) or members.keys() != _KEYS or not _is_format(members["fmt"]):
        raise MalformedCiphertext("the KMS package is not an object with exactly its members")
    return members


def _is_format(value: object) -> bool:
    return type(value) is int and value == FORMAT  # True == 1.0 == 1


# made once, because json.loads and json.dumps with options make one for each call
_from_json: Final = json.JSONDecoder(object_pairs_hook=unique_members).decode
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode


def _name(members: Mapping[str, Any], key: str) -> str:
    name = members[key]
    if not isinstance(name, str) or not name or len(name) > MAXIMUM_NAME_CHARACTERS:
        raise MalformedCiphertext(f"the KMS package's {key} is not text of 1 to {MAXIMUM_NAME_CHARACTERS} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise MalformedCiphertext(f"the KMS package's {key} is not Unicode text") from None
    return name


def _bytes(members: Mapping[str, Any], key: str, minimum: int, maximum: int | None) -> bytes:
    text = members[key]
    if not isinstance(text, str):
        raise MalformedCiphertext(f"the KMS package's {key} is not text")
    data = base64url.decode(text)
    if len(data) < minimum or (maximum is not None and len(data) > maximum):
        raise MalformedCiphertext(f"the KMS package's {key} does not have its size")
    return data
