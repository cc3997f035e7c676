"""The help of every command, wrong command lines, and `keys generate`."""

from __future__ import annotations

import base64
from pathlib import Path

import click
import pytest

from app.callers.service_keys import Scope
from tests.support.process.command_lines import leaf_commands
from tests.support.process.home import COMMAND, run, token_vault

LEAVES = leaf_commands()
GROUPS = {words[:1] for words in LEAVES if len(words) > 1}


@pytest.mark.parametrize("words", [(), *sorted(GROUPS)], ids=" ".join)
def test_the_help_of_a_group_names_its_commands(tmp_path: Path, words: tuple[str, ...]) -> None:
    below = {leaf[len(words)] for leaf in LEAVES if leaf[: len(words)] == words != leaf}
    done = token_vault(*words, "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    listed = done.stdout.partition("Commands:\n")[2].splitlines()
    assert {line.split()[0] for line in listed} == below
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == [], "a cut description"


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_the_help_of_a_command_names_its_options_and_exit_codes(tmp_path: Path, words: tuple[str, ...]) -> None:
    names = [one.opts[0] if isinstance(one, click.Option) else one.human_readable_name for one in LEAVES[words].params]
    # help works with a wrong setting too
    done = token_vault(*words, "--help", folder=tmp_path, settings={"PORT": "wrong"})
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name in [*names, "Exit codes: 0 "] if name not in done.stdout] == []


def test_the_help_names_every_scope(tmp_path: Path) -> None:
    text = token_vault("service-key", "create", "--help", folder=tmp_path).stdout
    assert [scope for scope in Scope if scope not in text] == []


@pytest.mark.parametrize("arguments", [("nonsense",), ("serve", "--nonsense"), ("serve", "--workers", "0")])
def test_a_wrong_command_line_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = token_vault(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_generated_master_keys_have_32_bytes_and_differ(tmp_path: Path) -> None:
    # new processes, because a forked one could inherit the state of a random generator
    generated = [run(COMMAND, "keys", "generate", folder=tmp_path) for _ in range(2)]
    keys = [done.stdout.removesuffix("\n") for done in generated]
    assert all((done.returncode, done.stderr) == (0, "") for done in generated)
    assert [len(base64.b64decode(key, validate=True)) for key in keys] == [32, 32]
    assert len(set(keys)) == 2
    assert list(tmp_path.iterdir()) == []
