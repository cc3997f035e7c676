"""Search for a secret in any encoding."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final
from urllib.parse import quote, quote_plus

_SHORTEST: Final = 12  # a shorter run of letters may occur by chance
_RUN: Final = re.compile(rb"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Secret:
    """Bytes that must not be found; `label` names them in a failure."""

    label: str
    content: bytes

    @classmethod
    def of(cls, label: str, text: str) -> Secret:
        return cls(label, text.encode())

    def needles(self) -> dict[bytes, str]:
        """Map each form to its name: of the whole, and of its longest run of letters as a part."""
        return _needles(self.content)


@dataclass(frozen=True, slots=True)
class Place:
    """An answer, a log, a file."""

    name: str
    content: bytes


def find(secrets: Iterable[Secret], places: Iterable[Place]) -> list[str]:
    """Return a line for each secret found, with the place and the form."""
    needles = [(secret.label, needle, form) for secret in secrets for needle, form in secret.needles().items()]
    return [
        f"{label} stands in {place.name} as {form}"
        for place in places
        for label, needle, form in needles
        if needle in place.content
    ]


@cache  # each secret is searched in several kinds of places
def _needles(content: bytes) -> dict[bytes, str]:
    runs = sorted(_RUN.findall(content), key=len)
    parts = [content, *(runs[-1:] if runs and len(runs[-1]) >= _SHORTEST else [])]
    return {needle: form for part in parts for form, needle in _forms(part)}


def _forms(content: bytes) -> Iterator[tuple[str, bytes]]:
    yield "plain", content
    for offset in range(3):
        characters = _aligned(content, offset)
        yield f"base64 at {offset}", characters
        yield f"url-safe base64 at {offset}", characters.translate(bytes.maketrans(b"+/", b"-_"))
    yield "hex", content.hex().encode()
    yield "HEX", content.hex().upper().encode()
    yield "percent-encoded bytes", "".join(f"%{byte:02x}" for byte in content).encode()
    yield "PERCENT-ENCODED bytes", "".join(f"%{byte:02X}" for byte in content).encode()
    yield "URL-escaped", quote(content, safe="").encode()
    yield "URL-escaped in small letters", _small_escapes(quote(content, safe="")).encode()
    yield "URL-escaped path", quote(content).encode()
    yield "form-escaped", quote_plus(content).encode()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        yield "Python's bytes", repr(content)[2:-1].encode()
        return
    yield "Python's text", repr(text)[1:-1].encode()
    yield "JSON-escaped", json.dumps(text)[1:-1].encode()
    yield "JSON-escaped in UTF-8", json.dumps(text, ensure_ascii=False)[1:-1].encode()
    yield "JSON-escaped with slashes", json.dumps(text)[1:-1].replace("/", r"\/").encode()
    yield "JSON-escaped twice", json.dumps(json.dumps(text)[1:-1])[1:-1].encode()
    units = text.encode("utf-16-be")
    codes = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
    yield "\\u escapes", "".join(rf"\u{code}" for code in codes).encode()
    yield "\\U escapes", "".join(rf"\u{code.upper()}" for code in codes).encode()


def _aligned(content: bytes, offset: int) -> bytes:
    """Return the base64 of these bytes after `offset` others, without the characters that neighbours share."""
    whole = base64.b64encode(bytes(offset) + content)
    first = (0, 2, 3)[offset]
    return whole[first : (offset + len(content)) * 8 // 6]


def _small_escapes(text: str) -> str:
    return re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), text)
