"""The help of every command, wrong command lines, and `keys generate`."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import click
import pytest

from app.callers.service_keys import Scope
from tests.support.paths import ROOT
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


def test_every_command_that_lists_prints_json_too() -> None:
    listing = {"audit show", "doctor", "encryption status", "migrate status", "providers check", "providers list",
               "service-key list"}  # fmt: skip
    with_json = {
        " ".join(words) for words, command in LEAVES.items() if "as_json" in (one.name for one in command.params)
    }
    assert listing <= with_json
    named = {" ".join(words) for words in LEAVES if words[-1] in {"list", "show", "status"}}
    assert named <= with_json


@pytest.mark.parametrize(
    ("typed", "completed"), [("mig", ["migrate"]), ("audit s", ["show"]), ("serve --wo", ["--workers"])]
)
def test_the_shell_completes_commands_and_options(tmp_path: Path, typed: str, completed: list[str]) -> None:
    words = f"token-vault {typed}"
    asked = {
        "_TOKEN_VAULT_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = token_vault(folder=tmp_path, settings=asked)
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == completed


def test_the_documented_completion_is_a_script_that_bash_takes(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "cli.md").read_text()
    (line,) = re.findall(r"^(_TOKEN_VAULT_COMPLETE=.+?) +#", document, re.MULTILINE)
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    script = f"{line}\nsource ~/.token-vault-complete.bash\ncomplete -p token-vault"
    done = run("bash", "-euc", script, folder=tmp_path, settings={"HOME": str(tmp_path), "PATH": path})
    assert "_token_vault_completion" in done.stdout, done.stderr


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
