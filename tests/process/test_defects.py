"""A defect in a command: something that it calls fails in a way that nobody thought of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
import pytest

from app.cli import main
from tests.command_lines import commands_of
from tests.process.home import COMMAND, new_home, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


@pytest.mark.parametrize("words", BROKEN, ids=" ".join)
def test_it_is_one_line_and_2_and_where_it_was_is_logged_without_its_text(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    module, _, name = BROKEN[words].rpartition(".")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(BREAKING.format(module=module, name=name, secret=SECRET))
    (tmp_path / "lines").touch()
    (tmp_path / "keys.json").write_text("[]")
    home = new_home(
        tmp_path, PYTHONPATH="broken", AWS_REGION="us-east-1", SERVICE_KEYS_FILE="keys.json", SERVICE_KEYS=""
    )
    audit_key = home.settings["TOKEN_ENCRYPTION_KEY"]
    done = run(
        COMMAND, *words, folder=tmp_path, settings={**home.settings, "AUDIT_KEY": audit_key, "LOG_FORMAT": "json"}
    )
    assert (done.returncode, done.stderr) == (
        2,
        "Error: a defect of the vault stopped it, RuntimeError: its log line says where\n",
    )
    assert SECRET not in done.stdout
    assert "Traceback" not in done.stdout
    assert "failed" in done.stdout
    assert "sitecustomize.py:5 fail" in done.stdout
