"""The fields that a log line may have."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from app.observability.log_fields import ALLOWED, keep_allowed_fields, keep_plain_values
from tests.support.paths import ROOT

_LEVELS = {"debug", "info", "warning", "error", "critical", "level"}
_FOR_STRUCTLOG = {"exc_info"}


def _logged(log_format: str, folder: Path) -> str:
    program = f"""
import logging, structlog
from app.observability.logging import configure_logging
configure_logging(level="DEBUG", log_format={log_format!r})
structlog.get_logger().warning("tried", outcome="kept", access_token="CANARY-1", **{{"CANARY 2": 3}})
logging.getLogger("some.library").warning("asked %s for %s", "CANARY-3", "CANARY-4")
logging.getLogger("some.library").warning("plain", extra={{"token": "CANARY-5"}})
logging.getLogger("uvicorn.error").info("running on %s", "http://127.0.0.1:1")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder, timeout=120
    )
    assert done.stderr == ""
    return done.stdout


def test_an_unknown_field_is_dropped_and_a_librarys_values_withheld(tmp_path: Path) -> None:
    output = _logged("json", tmp_path)
    ours, library, plain, uvicorn = map(json.loads, output.splitlines())
    assert ours["dropped_fields"] == ["access_token", "unnameable"]
    assert (ours["event"], ours["outcome"], ours["level"]) == ("tried", "kept", "warning")
    assert ours.keys() == {"event", "outcome", "level", "timestamp", "dropped_fields"}
    assert (library["event"], library["logger"]) == ("asked %s for %s", "some.library")
    assert plain.keys() == {"event", "logger", "level", "timestamp"}
    assert uvicorn["event"] == "running on http://127.0.0.1:1"
    assert "CANARY" not in output


def test_the_console_format_drops_the_same_fields(tmp_path: Path) -> None:
    output = re.sub(r"\x1b\[[0-9;]*m", "", _logged("console", tmp_path))
    assert "CANARY" not in output
    assert re.search(r"tried.*dropped_fields=\['access_token', 'unnameable'\]", output)


def test_a_line_of_allowed_fields_is_unchanged() -> None:
    line = {"event": "request", "status": 200}
    assert keep_allowed_fields(None, "info", line) is line
    assert line == {"event": "request", "status": 200}


class _HidesItself(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return "hidden"


@dataclass(frozen=True)
class _Holder:
    name: str
    secret: str = field(repr=False)


def test_an_object_is_logged_as_its_type() -> None:
    """Renderers look into dataclasses, models and bytes, past a `repr` that hides a secret."""
    values = (
        _Holder("a", "CANARY"),
        b"CANARY",
        _HidesItself("CANARY"),
        SecretStr("CANARY"),
        {"k": "CANARY"},
        {"CANARY"},
    )
    for value in values:
        line = keep_plain_values(None, "info", {"reason": value, "keys": ["plain", value], "status": 200})
        assert line == {"reason": type(value).__qualname__, "keys": ["plain", type(value).__qualname__], "status": 200}


def test_every_field_that_the_code_logs_is_allowed() -> None:
    logged: dict[str, str] = {}
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _is_log_call(node.func):
                logged |= {name.arg: f"{path.name}:{node.lineno}" for name in node.keywords if name.arg is not None}
    assert {"outcome", "request_id", "check"} <= logged.keys(), "the calls are found"
    assert {name: place for name, place in logged.items() if name not in ALLOWED | _FOR_STRUCTLOG} == {}


def _is_log_call(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id == "level"  # chosen before the call
    if not isinstance(function, ast.Attribute) or function.attr not in _LEVELS:
        return False
    owner = function.value
    return "log" in (owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")).lower()
