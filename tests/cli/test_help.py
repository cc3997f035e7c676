"""The command as a whole: its help, and `keys generate`."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from app.cli import main
from tests.support.process.command_lines import commands_of
from tests.support.process.home import COMMAND, run, token_vault

OPTIONS = {
    (): (
        *("--version", "--help"),
        *("audit", "doctor", "encryption", "health", "init", "keys", "kms", "rewrap", "serve", "service-key"),
    ),
    ("init",): ("--help",),
    ("serve",): ("--host", "--port", "--workers", "--tls-cert", "--tls-key", "--tls-client-ca", "--help"),
    ("audit",): ("show", "verify", "--help"),
    ("audit", "show"): ("FILE", "--user", "--service", "--operation", "--outcome", "--since", "--json", "--help"),
    ("audit", "verify"): ("FILE", "--partial", "--help"),
    ("keys",): ("generate", "retire", "--help"),
    ("keys", "generate"): ("--help",),
    ("keys", "retire"): ("VERSION", "--help"),
    ("encryption",): ("status", "--help"),
    ("encryption", "status"): ("--json", "--help"),
    ("rewrap",): ("--dry-run", "--limit", "--rate", "--provider", "--timeout", "--help"),
    ("kms",): ("cost", "setup", "--help"),
    ("kms", "setup"): ("--alias", "--role-arn", "--region", "--dry-run", "--help"),
    ("kms", "cost"): (
        "--users",
        "--operations-per-user",
        "--operations-per-visit",
        "--replicas",
        "--max-age",
        "--help",
    ),
    ("service-key",): ("create", "list", "revoke", "--help"),
    ("service-key", "create"): ("--service", "--scope", "--provider", "--expires", "--help"),
    ("service-key", "list"): ("--help",),
    ("service-key", "revoke"): ("FINGERPRINT", "--service", "--help"),
    ("doctor",): ("--help",),
    ("health",): ("--host", "--port", "--help"),
}


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, below in commands_of(command).items():
            yield from _commands(below, (*path, name))


def test_every_command_stands_in_the_table() -> None:
    assert set(_commands(main)) == OPTIONS.keys()


@pytest.mark.parametrize("command", OPTIONS, ids=" ".join)
def test_help_names_every_option(tmp_path: Path, command: tuple[str, ...]) -> None:
    # a wrong setting must not keep anybody from reading the help
    done = run(COMMAND, *command, "--help", folder=tmp_path, settings={"PORT": "wrong"})
    assert (done.returncode, done.stderr) == (0, "")
    assert [option for option in OPTIONS[command] if option not in done.stdout] == []


def test_the_help_names_every_scope(tmp_path: Path) -> None:
    words = token_vault("service-key", "create", "--help", folder=tmp_path).stdout
    scopes = ("read", "reveal", "reveal_refresh", "write", "delete", "admin")
    assert [scope for scope in scopes if f"tokens:{scope}" not in words] == []


@pytest.mark.parametrize("arguments", [("nonsense",), ("serve", "--nonsense"), ("serve", "--workers", "0")])
def test_a_wrong_command_line_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(COMMAND, *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_generated_master_keys_have_32_bytes_and_differ(tmp_path: Path) -> None:
    generated = [token_vault("keys", "generate", folder=tmp_path) for _ in range(3)]
    keys = [done.stdout.removesuffix("\n") for done in generated]
    assert all((done.returncode, done.stderr) == (0, "") for done in generated)
    assert [len(base64.b64decode(key, validate=True)) for key in keys] == [32, 32, 32]
    assert len(set(keys)) == 3
    assert list(tmp_path.iterdir()) == []
