"""The text of a KMS envelope: `kms:` and compact JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from app.errors import MalformedCiphertext
from app.security import base64url
from app.security.aead import COMMITMENT_BYTES, NONCE_BYTES, TAG_BYTES, Box

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "kms:"
FORMAT: Final = 1
_KEYS: Final = frozenset({"fmt", "kid", "id", "dk", "cm", "n", "ct"})
_MAXIMUM_WRAPPED_BYTES: Final = 6144  # what KMS Decrypt accepts
_MAXIMUM_NAME_CHARACTERS: Final = 2048


@dataclass(frozen=True, slots=True)
class Package:
    """A ciphertext with what is needed to open it: `kid`, `id`, `dk`, then the box as `cm`, `n` and `ct`."""

    key_arn: str
    tracking_id: str
    wrapped: bytes
    box: Box

    def encode(self) -> str:
        """Return the text that is stored."""
        members = {
            "fmt": FORMAT,
            "kid": self.key_arn,
            "id": self.tracking_id,
            "dk": base64url.encode(self.wrapped),
            "cm": base64url.encode(self.box.commitment),
            "n": base64url.encode(self.box.nonce),
            "ct": base64url.encode(self.box.ciphertext),
        }
        return PREFIX + _to_json(members)

    @classmethod
    def decode(cls, text: str) -> Package:
        """Read the text, or raise `MalformedCiphertext`: every member once, of its type and size, nothing else."""
        try:
            members = _from_json(text.removeprefix(PREFIX))
        except (ValueError, RecursionError):
            members = None
        if not isinstance(members, dict) or members.keys() != _KEYS or members["fmt"] is not FORMAT:
            message = "the KMS package is not an object with exactly its members"
            raise MalformedCiphertext(message)
        box = Box(
            _bytes(members, "cm", COMMITMENT_BYTES, COMMITMENT_BYTES),
            _bytes(members, "n", NONCE_BYTES, NONCE_BYTES),
            _bytes(members, "ct", TAG_BYTES, None),
        )
        wrapped = _bytes(members, "dk", 1, _MAXIMUM_WRAPPED_BYTES)
        return cls(_name(members, "kid"), _name(members, "id"), wrapped, box)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


# made once: json.loads and json.dumps make theirs for each call that has an option
_from_json: Final = json.JSONDecoder(object_pairs_hook=_unique).decode
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode


def _name(members: Mapping[str, Any], key: str) -> str:
    name = members[key]
    if not isinstance(name, str) or not name or len(name) > _MAXIMUM_NAME_CHARACTERS:
        message = f"the KMS package's {key} is not a name"
        raise MalformedCiphertext(message)
    try:
        name.encode()
    except UnicodeEncodeError:
        message = f"the KMS package's {key} is not Unicode text"
        raise MalformedCiphertext(message) from None
    return name


def _bytes(members: Mapping[str, Any], key: str, minimum: int, maximum: int | None) -> bytes:
    text = members[key]
    if not isinstance(text, str):
        message = f"the KMS package's {key} is not text"
        raise MalformedCiphertext(message)
    data = base64url.decode(text)
    if len(data) < minimum or (maximum is not None and len(data) > maximum):
        message = f"the KMS package's {key} does not have its size"
        raise MalformedCiphertext(message)
    return data
