"""The byte format of audit lines, and the chain that they form.

A line is a JSON object in ASCII, without spaces, that ends with a line feed:

    {"audit":1,"chain":"…","seq":7,"prev":"…","kind":"event",…,"mac":"…"}

`mac` is HMAC-SHA256 over every byte before `,"mac":"`. `prev` is SHA-256 over the previous line of the chain, from its
first brace to its last, without the line feed; it is 64 zeros in the first line. Both are lower-case hex.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final

from app.audit.signing_key import AuditKey
from app.tokens.events import INTENT, TokenEvent

START: Final = "start"
EVENT: Final = "event"
RESUMED: Final = "resumed"
END: Final = "end"
NOTHING_BEFORE: Final = "0" * 64
MAXIMUM_LINE_BYTES: Final = 64 * 1024 * 1024  # a start may name many chains; anything longer is not an audit line
CHAIN_PATTERN: Final = r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{16}"

_BEFORE_MAC: Final = b',"mac":"'
_LINE: Final = re.compile(
    rb'(\{"audit":1,"chain":"(%b)","seq":([1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})","kind":"([a-z]{1,16})"'
    rb'(?:,"intent":"([0-9a-f]{16})")?(?:,"time":"([0-9]{4}-[0-9:.T-]{21}Z)")?.*)'
    rb',"mac":"([0-9a-f]{64})"\}' % CHAIN_PATTERN.encode()
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line with the form of an audit line; `is_signed_with` decides whether it is genuine.

    `intent` is the id that an intent and the event of its outcome share. `time` sorts as text: it is RFC 3339 in UTC,
    with microseconds.
    """

    text: bytes
    chain: str
    seq: int
    prev: str
    kind: str
    intent: str | None
    time: str
    signed: bytes
    mac: bytes

    @property
    def hash(self) -> str:
        return digest(self.text)

    def is_signed_with(self, key: AuditKey) -> bool:
        return hmac.compare_digest(self.mac, key.mac(self.signed))

    def members(self) -> dict[str, Any]:
        """Return the whole object; raises `ValueError` if it is not JSON."""
        members = json.loads(self.text)
        if not isinstance(members, dict):  # pragma: no cover  the form begins with a brace
            raise TypeError
        return members


def parse_line(text: bytes) -> Line | None:
    """Parse a line without its line feed; return `None` if it does not have the form of an audit line."""
    found = _LINE.fullmatch(text)
    if found is None:
        return None
    signed, chain, seq, prev, kind, intent, time, mac = found.groups()
    name = None if intent is None else intent.decode()
    at = (time or b"").decode()
    return Line(text, chain.decode(), int(seq), prev.decode(), kind.decode(), name, at, signed, mac)


def digest(line: bytes) -> str:
    """Return SHA-256 of a line without its line feed."""
    return hashlib.sha256(line).hexdigest()


class Chain:
    """The chain of one process. `sign` makes its next lines, and `advance` commits those that were written."""

    def __init__(self, *, key: AuditKey) -> None:
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(8)}"
        self.key = key
        self.seq = 0
        self.prev = NOTHING_BEFORE
        self._head = f'{{"audit":1,"chain":"{self.id}","seq":'

    def sign(self, members: Iterable[str]) -> list[bytes]:
        """Sign the next lines. Each string in `members` is the text of the JSON object from `"kind"` on, in ASCII."""
        lines = []
        seq, prev, head, mac = self.seq, self.prev, self._head, self.key.mac
        for one in members:
            seq += 1
            signed = f'{head}{seq},"prev":"{prev}",{one}'.encode("ascii")
            line = b'%b%b%b"}' % (signed, _BEFORE_MAC, mac(signed))
            prev = digest(line)
            lines.append(line)
        return lines

    def advance(self, written: Sequence[bytes]) -> None:
        """Continue after these lines, which `sign` made."""
        if written:
            self.seq += len(written)
            self.prev = digest(written[-1])


def event_members(at: float, event: TokenEvent, omitted: int, *, retried: bool = False) -> str:
    """Return the members of an event, or of the intent of a change, without braces.

    The error's detail goes to the log alone. `omitted` refusals were left out before this event. `retried` events come
    from the retry buffer.
    """
    caller, token_id = event.caller, event.token_id
    if event.outcome == INTENT:
        kind, outcome, result = INTENT, "", ""
    else:
        kind, outcome = EVENT, f'"outcome":{quoted(event.outcome)},'
        revealed = ",".join([quoted(one.value) for one in event.revealed])
        opened = f',"opened":[{",".join([quoted(one.value) for one in event.opened])}]' if event.opened else ""
        revoked = f',"revoked":[{",".join([quoted(one.value) for one in event.revoked])}]' if event.revoked else ""
        result = f'"revealed":[{revealed}]{revoked}{opened},"scheme":{_or_null(event.scheme)},'
    intent = "" if event.intent is None else f'"intent":"{event.intent}",'
    left_out = f',"omitted":{omitted}' if omitted else ""
    late = ',"late":true' if retried else ""
    for_user = "" if caller.on_behalf_of is None else f',"on_behalf_of":{quoted(caller.on_behalf_of)}'
    # formatted by hand because this runs for every operation, and json.dumps took three times as long
    return (
        f'"kind":"{kind}",{intent}"time":"{_timestamp(at)}","operation":"{event.operation.value}",'
        f'{outcome}"service":{_or_null(caller.service or None)},'
        f'"key":{_or_null(caller.key_fingerprint)},"request_id":{_or_null(caller.request_id or None)},'
        f'"user_id":{_or_null(event.user_id)},"provider":{_or_null(token_id.provider if token_id else None)},'
        f'"service_type":{_or_null(token_id.service_type if token_id else None)},'
        f'{result}"address":{_or_null(caller.address)},"purpose":{_or_null(caller.purpose)}{for_user}{left_out}{late}'
    )


def start_members(at: float, *, key_name: str, sync: str, named: Sequence[Mapping[str, object]]) -> str:
    """Return the members of a chain's first line; `named` holds the checkpoints of other chains."""
    return _members(
        kind=START,
        time=_timestamp(at),
        host=socket.gethostname(),
        pid=os.getpid(),
        version=version("pulseplan-token-vault"),
        signing_key=key_name,
        sync=sync,
        named=named,
    )


def resumed_members(at: float, *, refused: int) -> str:
    """Return the members of the line after a failure or a slow write; `refused` operations were refused during it."""
    return _members(kind=RESUMED, time=_timestamp(at), refused=refused)


def end_members(at: float, *, omitted: int) -> str:
    """Return the members of a chain's last line."""
    return _members(kind=END, time=_timestamp(at), omitted=omitted)


def _members(**members: object) -> str:
    return json.dumps(members, separators=(",", ":"))[1:-1]


def _or_null(text: str | None) -> str:
    return "null" if text is None else quoted(text)


def _timestamp(seconds: float) -> str:
    """Format seconds since 1970 as RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
