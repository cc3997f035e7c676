"""The search for secrets finds a planted one, so a search without a result proves something."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from tests.support.canary.search import Place, Secret, find

TEXT = 'canary"~/%é\\ 0123456789abcdef+?'
ENCODINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "base64 at 0": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 at 1": lambda text: base64.b64encode(b"x" + text.encode() + b"yz").decode(),
    "base64 at 2": lambda text: base64.b64encode(b"xy" + text.encode() + b"z").decode(),
    "base64 at 3": lambda text: base64.b64encode(b"xyz" + text.encode() + b"abcde").decode(),
    "url-safe base64 at 0": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "url-safe base64 at 1": lambda text: base64.urlsafe_b64encode(b"{" + text.encode() + b"}").decode(),
    "url-safe base64 at 2": lambda text: base64.urlsafe_b64encode(b"{{" + text.encode() + b"}").decode(),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "URL": lambda text: quote(text, safe=""),
    "url": lambda text: quote(text, safe="").replace("%C3%A9", "%c3%a9").replace("%5C", "%5c").replace("%2F", "%2f"),
    "form": quote_plus,
    "JSON": json.dumps,
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "JSON of escapes": lambda text: "".join(f"\\u{ord(one):04x}" for one in text),
    "repr": repr,
    "only its tail": lambda text: text[-18:],
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_planted_secret_is_found_in_each_encoding(encoding: str) -> None:
    planted = f"2026-11-24 [info] before {ENCODINGS[encoding](TEXT)} after\n"
    assert find([Secret.of("token", TEXT)], [Place("the log", planted.encode())]), planted


@pytest.mark.parametrize("offset", range(3))
def test_bytes_are_found_in_base64_at_each_alignment(offset: int) -> None:
    content = bytes(range(200, 232))
    planted = base64.b64encode(bytes(offset) + content + b"more")
    assert find([Secret("key", content)], [Place("a file", planted)])


def test_an_absent_secret_is_not_found() -> None:
    assert find([Secret.of("token", TEXT)], [Place("the log", b"canary, 0123, and nothing else")]) == []
