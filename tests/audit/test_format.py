"""The bytes of a line are those that docs/audit.md defines: computed here from its words alone."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.audit.file_target import FileTarget
from app.audit.keys import decode_audit_key
from app.audit.lines import Chain
from app.audit.log_files import LogFiles, require_writable
from app.audit.members import event_members
from app.audit.target import WriteError
from app.tokens.events import Operation, TokenEvent
from app.tokens.models import Caller
from tests.support.audit.trails import KEY, SECRET, an_event, keep, members, mode


def test_hash_and_mac_of_every_line_are_as_documented(tmp_path: Path) -> None:
    mac_key = HKDF(hashes.SHA256(), 32, salt=None, info=b"pulseplan-token-vault/audit/v1/mac").derive(SECRET)
    [file] = keep(tmp_path, 5)
    content = file.read_bytes()
    assert content.endswith(b"\n")
    before = "0" * 64
    for seq, line in enumerate(content[:-1].split(b"\n"), start=1):
        signed, found, rest = line.rpartition(b',"mac":"')
        assert found
        assert rest == hmac.new(mac_key, signed, hashlib.sha256).hexdigest().encode() + b'"}'
        told = json.loads(line)
        assert (told["audit"], told["seq"], told["prev"]) == (1, seq, before)
        assert told["chain"] in file.name
        before = hashlib.sha256(line).hexdigest()


def test_a_chain_has_a_start_its_events_and_an_end(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 3)
    assert [json.loads(line)["kind"] for line in file.read_bytes().splitlines()] == ["start", *["event"] * 3, "end"]
    [start] = members([file], "start")
    assert start["signing_key"] == KEY.name
    assert {"host", "pid", "version", "sync", "named", "time"} < start.keys()


def test_an_event_says_who_did_what_to_which_token_with_which_outcome(tmp_path: Path) -> None:
    event = members(keep(tmp_path, 1))[0]
    user_id = "00000000-0000-0000-0000-000000000000"
    assert {name: event[name] for name in list(event)[6:-1]} == {
        "operation": "reveal",
        "outcome": "success",
        "service": "tests",
        "key": "0123456789ab",
        "request_id": "0b5c2f0e9d7c4d0c8e8f6f3d9a7b1c2e",
        "user_id": user_id,
        "provider": "canvas",
        "service_type": "default",
        "revealed": ["access_token"],
        "scheme": "local:v1",
        "address": "192.0.2.7",
        "purpose": "nightly-sync",
    }
    assert list(event)[5] == "time"


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
    told = json.loads(f"{{{text}}}")
    assert {told[name] for name in ("user_id", "scheme", "outcome", "service", "address", "purpose")} == {hostile}


def test_the_files_and_their_directory_are_for_their_owner_alone(tmp_path: Path) -> None:
    assert {mode(file) for file in keep(tmp_path / "audit", 1)} == {0o600}
    assert mode(tmp_path / "audit") == 0o700
    require_writable(LogFiles(tmp_path / "other" / "audit.jsonl"))
    assert mode(tmp_path / "other") == 0o700


def test_a_file_whose_name_is_taken_leaves_no_draft_and_follows_no_link(tmp_path: Path) -> None:
    chain = Chain(key=KEY).id
    family = LogFiles(tmp_path / "audit.jsonl")
    target = FileTarget(family=family, chain=chain, maximum_bytes=4096, flushing=True)
    taken = family.file(chain, 1)
    taken.mkdir()
    with pytest.raises(WriteError, match="EISDIR"):
        target.append([b"a line"], durably=False)
    assert list(tmp_path.iterdir()) == [taken]
    taken.rmdir()
    elsewhere = tmp_path / "elsewhere"
    taken.symlink_to(elsewhere)
    target.append([b"a line"], durably=False)
    target.close()
    assert (taken.is_symlink(), taken.read_bytes(), elsewhere.exists()) == (False, b"a line\n", False)


def test_neither_the_key_nor_what_it_derives_shows_in_a_repr() -> None:
    assert repr(KEY) == f"AuditKey(name='{KEY.name}')"
    assert SECRET.hex() != KEY.name


def test_the_error_s_detail_is_left_to_the_log() -> None:
    event = an_event(outcome="integrity")
    assert "detail" not in event_members(0, event, 0)


@pytest.mark.parametrize("text", ["", "short", "A" * 40, "!" * 44, "AAAA" * 10])
def test_a_key_that_is_no_base64_of_32_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|bytes") as caught:
        decode_audit_key(text)
    assert not text or text not in str(caught.value)
