"""The bytes of a line, and how lines hang together.

A line is a JSON object in ASCII, without spaces, that ends with a line feed:

    {"audit":1,"chain":"…","seq":7,"prev":"…","kind":"event",…,"mac":"…"}

`mac` is HMAC-SHA256 over every byte before `,"mac":"`; `prev` is SHA-256 over the line before it in the chain, from its
first brace to its last, without the line feed, and 64 zeros in the first. Both are lower-case hex.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from app.audit.keys import AuditKey

START: Final = "start"
EVENT: Final = "event"
RESUMED: Final = "resumed"
END: Final = "end"
NOTHING_BEFORE: Final = "0" * 64
MAXIMUM_LINE_BYTES: Final = 64 * 1024 * 1024  # a start may name many chains; whatever is longer is no line of ours
CHAIN_PATTERN: Final = r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{16}"

_BEFORE_MAC: Final = b',"mac":"'
_LINE: Final = re.compile(
    rb'(\{"audit":1,"chain":"(%b)","seq":([1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})","kind":"([a-z]{1,16})".*)'
    rb',"mac":"([0-9a-f]{64})"\}' % CHAIN_PATTERN.encode()
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that has the form of one; whether it is genuine only `is_signed_with` tells."""

    text: bytes
    chain: str
    seq: int
    prev: str
    kind: str
    signed: bytes
    mac: bytes

    @property
    def hash(self) -> str:
        return digest(self.text)

    def is_signed_with(self, key: AuditKey) -> bool:
        return hmac.compare_digest(self.mac, key.mac(self.signed))

    def members(self) -> dict[str, Any]:
        """Return the whole object; raises `ValueError` where it is not JSON."""
        members = json.loads(self.text)
        if not isinstance(members, dict):  # pragma: no cover  the form begins with a brace
            raise TypeError
        return members


def parse_line(text: bytes) -> Line | None:
    """Return the line that these bytes are, without their line feed, or `None` where they have not its form."""
    found = _LINE.fullmatch(text)
    if found is None:
        return None
    signed, chain, seq, prev, kind, mac = found.groups()
    return Line(text, chain.decode(), int(seq), prev.decode(), kind.decode(), signed, mac)


def digest(line: bytes) -> str:
    """Return SHA-256 of a line without its line feed."""
    return hashlib.sha256(line).hexdigest()


def timestamp(seconds: float) -> str:
    """Return RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Chain:
    """The lines of one process. `sealed` makes the next ones; they count only once `keep` is told so."""

    def __init__(self, *, key: AuditKey) -> None:
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(8)}"
        self.key = key
        self.seq = 0
        self.prev = NOTHING_BEFORE
        self._head = f'{{"audit":1,"chain":"{self.id}","seq":'

    def sealed(self, members: Iterable[str]) -> list[bytes]:
        """Return a line for each; `members` are those of the object from `"kind"` on, in ASCII."""
        lines = []
        seq, prev, head, mac = self.seq, self.prev, self._head, self.key.mac
        for one in members:
            seq += 1
            signed = f'{head}{seq},"prev":"{prev}",{one}'.encode("ascii")
            line = b'%b%b%b"}' % (signed, _BEFORE_MAC, mac(signed))
            prev = hashlib.sha256(line).hexdigest()
            lines.append(line)
        return lines

    def keep(self, lines: Sequence[bytes]) -> None:
        """Go on after these lines, which `sealed` has made."""
        if lines:
            self.seq += len(lines)
            self.prev = digest(lines[-1])
