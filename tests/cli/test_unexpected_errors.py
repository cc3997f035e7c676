"""Unexpected exceptions: one line, an exit code, and a log line without the exception's text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import pytest

from tests.support.paths import ROOT
from tests.support.process.command_lines import leaf_commands
from tests.support.process.home import COMMAND, new_home, run, token_vault
from tests.support.process.prepared import BROKEN_TEXT

SCRIPT: Final = ROOT / "scripts" / "migrate_to_kms.py"
_PRINTS, _LOOPS = "click.echo", "asyncio.run"
# for each command a function that it calls
CALLED: Final = {
    ("init",): _PRINTS,
    ("serve",): "uvicorn.Server",
    ("keys", "generate"): "secrets.token_bytes",
    ("keys", "retire", "1"): _LOOPS,
    ("service-key", "create", "--service", "x", "--scope", "tokens:read"): "secrets.token_urlsafe",
    ("service-key", "list"): _PRINTS,
    ("service-key", "revoke", "--service", "x"): "json.loads",
    ("kms", "setup"): "boto3.Session",
    ("kms", "cost", "--users", "1", "--operations-per-user", "1"): _PRINTS,
    ("encryption", "status"): _LOOPS,
    ("refresh",): _LOOPS,
    ("rewrap",): _LOOPS,
    ("migrate",): _LOOPS,
    ("migrate", "status"): _LOOPS,
    ("audit", "verify", "lines"): _PRINTS,
    ("audit", "show", "lines"): _PRINTS,
    ("providers", "list"): _PRINTS,
    ("providers", "check"): _LOOPS,
    ("doctor",): _PRINTS,
    ("health",): "socket.create_connection",
}
# Python imports a module of this name at its start
SITECUSTOMIZE: Final = f"""
import {{module}}

def _fail(*_, **__):
    raise RuntimeError({BROKEN_TEXT!r})

{{module}}.{{name}} = _fail
"""


def test_every_command_is_in_the_table() -> None:
    leaves = leaf_commands().keys()
    assert {max((leaf for leaf in leaves if words[: len(leaf)] == leaf), key=len) for words in CALLED} == leaves


def _settings(folder: Path) -> dict[str, str]:
    (folder / "lines").touch()
    (folder / "keys.json").write_text("[]")
    url = "postgresql://owner@127.0.0.1:1/vault"
    given = {"AWS_REGION": "us-east-1", "SERVICE_KEYS_FILE": "keys.json", "SERVICE_KEYS": "", "DATABASE_URL": url}
    settings = new_home(folder, LOG_FORMAT="json", **given).settings
    return {**settings, "AUDIT_KEY": settings["TOKEN_ENCRYPTION_KEY"]}


def _require_one_line_and_a_log_line(done: CompletedProcess[str], *, serves: bool = False, exit_code: int = 2) -> None:
    """Require that the log line is on standard error, or for `serve` in its log, which is standard output."""
    *logged, error = (done.stdout + done.stderr).splitlines()
    assert done.returncode == exit_code
    assert error == "Error: internal error: RuntimeError. The log line above says where; please report it"
    assert done.stdout.splitlines() == (logged if serves else [])
    log = "\n".join(logged)
    assert BROKEN_TEXT not in log
    assert "Traceback" not in log
    assert "failed" in log
    assert ":5 _fail" in log or "prepared.py" in log


@pytest.mark.parametrize("words", CALLED, ids=" ".join)
def test_an_unexpected_error_is_one_line_and_its_place_is_logged(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = token_vault(*words, folder=tmp_path, settings=_settings(tmp_path), broken=CALLED[words])
    _require_one_line_and_a_log_line(done, serves=words == ("serve",), exit_code=1 if words == ("health",) else 2)


@pytest.mark.parametrize(
    ("program", "called"),
    [
        ((COMMAND, "service-key", "list"), _PRINTS),
        ((sys.executable, str(SCRIPT)), "json.loads"),
        ((sys.executable, str(SCRIPT)), _LOOPS),
    ],
    ids=["the installed command", "migrate_to_kms.py", "migrate_to_kms.py in its event loop"],
)
def test_the_installed_command_and_the_script_end_the_same_way(
    tmp_path: Path, program: tuple[str, ...], called: str
) -> None:
    module, _, name = called.rpartition(".")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(SITECUSTOMIZE.format(module=module, name=name))
    kms = {"USE_KMS": "true", "KMS_KEY_ID": "alias/none", "KMS_PREVIOUS_KEY_IDS": json.dumps([])}
    settings = {**_settings(tmp_path), **kms, "PYTHONPATH": "broken"}
    _require_one_line_and_a_log_line(run(*program, folder=tmp_path, settings=settings))
