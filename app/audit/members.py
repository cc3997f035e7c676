"""What each kind of line says, as JSON members without their braces."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from importlib.metadata import version
from json.encoder import encode_basestring_ascii as quoted

from app.audit.chain_checkpoint import ChainCheckpoint
from app.audit.lines import END, RESUMED, START, timestamp
from app.tokens.events import TokenEvent


def event_members(at: float, event: TokenEvent, omitted: int, *, late: bool = False) -> str:
    """Return an attempt. The error's detail is left to the log; `omitted` attempts precede it that are left out."""
    caller, token_id = event.caller, event.token_id
    left_out = f',"omitted":{omitted}' if omitted else ""
    kept_late = ',"late":true' if late else ""
    # by hand: this runs for every attempt, and json.dumps took three times as long
    return (
        f'"kind":"event","time":"{timestamp(at)}","operation":"{event.operation.value}",'
        f'"outcome":{quoted(event.outcome)},"service":{_or_null(caller.service or None)},'
        f'"key":{_or_null(caller.key_fingerprint)},"request_id":{_or_null(caller.request_id or None)},'
        f'"user_id":{_or_null(event.user_id)},"provider":{_or_null(token_id.provider if token_id else None)},'
        f'"service_type":{_or_null(token_id.service_type if token_id else None)},'
        f'"revealed":[{",".join(quoted(one.value) for one in event.revealed)}],"scheme":{_or_null(event.scheme)},'
        f'"address":{_or_null(caller.address)},"purpose":{_or_null(caller.purpose)}{left_out}{kept_late}'
    )


def start_members(at: float, *, key_name: str, sync: str, named: Sequence[ChainCheckpoint]) -> str:
    """Return who writes, and what the chains beside this one end with."""
    return _members(
        kind=START,
        time=timestamp(at),
        host=socket.gethostname(),
        pid=os.getpid(),
        version=version("pulseplan-token-vault"),
        signing_key=key_name,
        sync=sync,
        named=[one.members() for one in named],
    )


def resumed_members(at: float, *, refused: int) -> str:
    """Return that lines are kept again, after `refused` attempts that could not be."""
    return _members(kind=RESUMED, time=timestamp(at), refused=refused)


def end_members(at: float, *, omitted: int) -> str:
    """Return that nothing follows."""
    return _members(kind=END, time=timestamp(at), omitted=omitted)


def _members(**members: object) -> str:
    return json.dumps(members, separators=(",", ":"))[1:-1]


def _or_null(text: str | None) -> str:
    return "null" if text is None else quoted(text)
