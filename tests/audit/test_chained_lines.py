"""The bytes of a line are those that docs/audit.md defines, computed here from its text alone."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.audit.chained_lines import event_members
from app.audit.signing_key import decode_audit_key
from app.tokens.events import Operation, TokenEvent
from app.tokens.models import Caller
from tests.support.audit.trails import KEY, KEY_TEXT, SECRET, an_event, keep, members


def test_hash_and_mac_of_every_line_are_as_documented(tmp_path: Path) -> None:
    mac_key = HKDF(hashes.SHA256(), 32, salt=None, info=b"pulseplan-token-vault/audit/v1/mac").derive(SECRET)
    [file] = keep(tmp_path, 5)
    content = file.read_bytes()
    assert content.endswith(b"\n")
    previous = "0" * 64
    for seq, line in enumerate(content[:-1].split(b"\n"), start=1):
        signed, separator, rest = line.rpartition(b',"mac":"')
        assert separator
        assert rest == hmac.new(mac_key, signed, hashlib.sha256).hexdigest().encode() + b'"}'
        parsed = json.loads(line)
        assert (parsed["audit"], parsed["seq"], parsed["prev"]) == (1, seq, previous)
        assert parsed["chain"] in file.name
        previous = hashlib.sha256(line).hexdigest()


def test_a_chain_has_a_start_its_events_and_an_end(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 3)
    assert [json.loads(line)["kind"] for line in file.read_bytes().splitlines()] == ["start", *["event"] * 3, "end"]
    [start] = members([file], "start")
    assert start["signing_key"] == KEY.name
    assert {"host", "pid", "version", "sync", "named", "time"} < start.keys()


def test_an_event_has_the_documented_members_in_order(tmp_path: Path) -> None:
    event = members(keep(tmp_path, 1))[0]
    assert list(event)[:6] == ["audit", "chain", "seq", "prev", "kind", "time"]
    assert list(event)[-1] == "mac"
    assert {name: event[name] for name in list(event)[6:-1]} == {
        "operation": "reveal",
        "outcome": "success",
        "service": "tests",
        "key": "0123456789ab",
        "request_id": "0b5c2f0e9d7c4d0c8e8f6f3d9a7b1c2e",
        "user_id": "00000000-0000-0000-0000-000000000000",
        "provider": "canvas",
        "service_type": "default",
        "revealed": ["access_token"],
        "scheme": "local:v1",
        "address": "192.0.2.7",
        "purpose": "nightly-sync",
    }


def test_hostile_text_stays_inside_its_string() -> None:
    hostile = 'a","mac":"\n\u2028\ud800"}'
    event = TokenEvent(
        operation=Operation.LIST,
        user_id=hostile,
        token_id=None,
        scheme=hostile,
        encryption_method=None,
        outcome=hostile,
        detail=None,
        caller=Caller(hostile, hostile, hostile, hostile, hostile),
    )
    text = event_members(0, event, 0)
    assert text.isascii()
    assert "\n" not in text
    parsed = json.loads(f"{{{text}}}")
    assert {parsed[name] for name in ("user_id", "scheme", "outcome", "service", "address", "purpose")} == {hostile}


def test_an_event_omits_the_detail_of_its_error() -> None:
    assert "detail" not in event_members(0, an_event(outcome="integrity"), 0)


def test_the_key_shows_in_no_repr_and_in_no_file(tmp_path: Path) -> None:
    assert repr(KEY) == f"AuditKey(name='{KEY.name}')"
    assert SECRET.hex() != KEY.name
    [file] = keep(tmp_path, 2)
    assert KEY_TEXT.encode() not in file.read_bytes()


@pytest.mark.parametrize("text", ["", "short", "A" * 40, "!" * 44, "AAAA" * 10])
def test_a_key_that_is_not_base64_of_32_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|bytes") as caught:
        decode_audit_key(text)
    assert not text or text not in str(caught.value)
