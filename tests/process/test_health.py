"""`token-vault health` beside vaults with and without TLS, and what it makes of one that stands still."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.process.certificates import new_authority
from tests.process.home import Home, new_home, token_vault
from tests.process.started import started
from tests.stack.ports import LOOPBACK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stack.reaper import Reaper

ALIVE = (0, "ok\n", "")


def _health(home: Home, *options: str, **settings: str) -> tuple[int, str, str]:
    done = token_vault("health", *options, folder=home.folder, settings={**home.settings, **settings})
    return done.returncode, done.stdout, done.stderr


def _home(folder: Path, kind: str) -> Home:
    if kind == "plain":
        return new_home(folder)
    # long expired, and of a CA that nobody knows: a reason to renew it, and none to restart the process
    certificate, key = new_authority(folder, "servers").issue(folder, "vault", days=-1)
    home = new_home(folder, TLS_CERT_FILE=str(certificate), TLS_KEY_FILE=str(key))
    if kind == "TLS":
        return home
    clients = new_authority(folder, "clients")
    return Home(folder, home.service_key, {**home.settings, "TLS_CLIENT_CA_FILE": str(clients.file)})


@pytest.mark.parametrize("kind", ["plain", "TLS", "TLS with client certificates"])
def test_it_follows_the_settings_and_tells_a_vault_that_stands_still_or_is_gone(
    tmp_path: Path, stack_reaper: Reaper, kind: str
) -> None:
    home = _home(tmp_path, kind)
    with started(home, reaper=stack_reaper) as vault:
        assert _health(home) == ALIVE
        assert _health(home, HOST="0.0.0.0") == ALIVE  # noqa: S104  as what listens is told
        os.kill(vault.pid, signal.SIGSTOP)
        try:
            code, _, stands_still = _health(home)
        finally:
            os.kill(vault.pid, signal.SIGCONT)
        assert (code, len(stands_still.splitlines())) == (1, 1)
        assert _health(home) == ALIVE
        if kind != "plain":
            assert _health(home, TLS_CERT_FILE="", TLS_KEY_FILE="", TLS_CLIENT_CA_FILE="")[0] == 1, "it speaks TLS"
        assert "Traceback" not in vault.output
    code, _, gone = _health(home)
    port = home.settings["PORT"]
    assert (code, gone) == (1, f"Error: no vault answers at {LOOPBACK}, port {port}: Connection refused\n")


def test_it_needs_no_secret_and_reads_none(tmp_path: Path, stack_reaper: Reaper) -> None:
    home = new_home(tmp_path)
    with started(home, reaper=stack_reaper):
        done = token_vault(
            "health", folder=tmp_path, settings={"PORT": home.settings["PORT"], "SERVICE_KEYS": "broken"}
        )
    assert done.returncode == 0


def test_what_is_no_vault_is_1_and_a_wrong_setting_2(tmp_path: Path) -> None:
    home = new_home(tmp_path)
    assert _health(home, PORT="wrong")[0] == 2
    needed = "Error: TLS_CERT_FILE and TLS_KEY_FILE are needed together, or neither\n"
    assert _health(home, TLS_KEY_FILE="vault.key") == (2, "", needed)
    assert _health(home, TLS_CLIENT_CA_FILE="callers.pem")[0] == 2
    with closing(socket.create_server((LOOPBACK, 0))) as silent:
        assert _health(home, "--port", str(silent.getsockname()[1]))[0] == 1
