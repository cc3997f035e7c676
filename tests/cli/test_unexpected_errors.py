"""A defect in a command: something that it calls fails in a way that nobody thought of."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import click
import pytest

from app.cli import main
from tests.support.paths import ROOT
from tests.support.process.command_lines import commands_of
from tests.support.process.home import COMMAND, Home, new_home, run

SCRIPT: Final = ROOT / "scripts" / "migrate_to_kms.py"
SECRET: Final = "CANARY-of-a-library"
# what each command calls of a library
_PRINTS, _LOOPS = "click.echo", "asyncio.run"
BROKEN: Final = {
    ("init",): _PRINTS,
    ("serve",): "uvicorn.run",
    ("keys", "generate"): "secrets.token_bytes",
    ("keys", "retire", "1"): _LOOPS,
    ("service-key", "create", "--service", "x", "--scope", "tokens:read"): "secrets.token_urlsafe",
    ("service-key", "list"): _PRINTS,
    ("service-key", "revoke", "--service", "x"): "json.loads",
    ("kms", "setup"): "boto3.Session",
    ("kms", "cost", "--users", "1", "--operations-per-user", "1"): _PRINTS,
    ("encryption", "status"): _LOOPS,
    ("rewrap",): _LOOPS,
    ("audit", "verify", "lines"): _PRINTS,
    ("audit", "show", "lines"): _PRINTS,
    ("doctor",): _PRINTS,
    ("health",): "socket.create_connection",
}
# Python imports a module of this name before anything else
BREAKING: Final = """
import {module}

def fail(*_, **__):
    raise RuntimeError({secret!r})

{module}.{name} = fail
"""


def _leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        for name, below in commands_of(command).items():
            yield from _leaves(below, (*path, name))
    else:
        yield path


def test_every_command_is_broken_here() -> None:
    leaves = set(_leaves(main))
    assert {next(leaf for leaf in leaves if words[: len(leaf)] == leaf) for words in BROKEN} == leaves


def _broken_home(folder: Path, called: str) -> Home:
    """Return a home in which whatever is called by this name fails in every process of Python."""
    module, _, name = called.rpartition(".")
    (folder / "broken").mkdir()
    (folder / "broken" / "sitecustomize.py").write_text(BREAKING.format(module=module, name=name, secret=SECRET))
    (folder / "lines").touch()
    (folder / "keys.json").write_text("[]")
    home = new_home(
        folder,
        PYTHONPATH="broken",
        AWS_REGION="us-east-1",
        SERVICE_KEYS_FILE="keys.json",
        SERVICE_KEYS="",
        LOG_FORMAT="json",
    )
    return Home(folder, home.service_key, {**home.settings, "AUDIT_KEY": home.settings["TOKEN_ENCRYPTION_KEY"]})


def _require_one_line_and_a_log_line(done: CompletedProcess[str], *, serves: bool = False, exit_code: int = 2) -> None:
    """Whoever reads a command's output as JSON finds no log line in it; that of `serve` is its log."""
    *logged, said = (done.stdout + done.stderr).splitlines()
    assert done.returncode == exit_code
    assert said == "Error: a defect of the vault stopped it, RuntimeError: its log line says where"
    assert done.stdout.splitlines() == (logged if serves else [])
    log = "\n".join(logged)
    assert SECRET not in log
    assert "Traceback" not in log
    assert "failed" in log
    assert "sitecustomize.py:5 fail" in log


@pytest.mark.parametrize("words", BROKEN, ids=" ".join)
def test_it_is_one_line_and_where_it_was_is_logged_without_its_text(tmp_path: Path, words: tuple[str, ...]) -> None:
    home = _broken_home(tmp_path, BROKEN[words])
    done = run(COMMAND, *words, folder=tmp_path, settings=home.settings)
    _require_one_line_and_a_log_line(done, serves=words == ("serve",), exit_code=1 if words == ("health",) else 2)


@pytest.mark.parametrize("called", ["json.loads", "asyncio.run"])
def test_the_script_that_moves_tokens_to_kms_ends_the_same_way(tmp_path: Path, called: str) -> None:
    home = _broken_home(tmp_path, called)
    settings = {**home.settings, "USE_KMS": "true", "KMS_KEY_ID": "alias/none", "KMS_PREVIOUS_KEY_IDS": json.dumps([])}
    _require_one_line_and_a_log_line(run(sys.executable, str(SCRIPT), folder=tmp_path, settings=settings))
