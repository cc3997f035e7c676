"""deploy/systemd: the unit is valid, hardened and true to the program."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from app.cli.serve import GRACEFUL_SHUTDOWN_SECONDS
from app.config.settings import load_settings
from app.refresh.detached_tasks import DRAIN_SECONDS as STORING_SECONDS
from tests.support.paths import ROOT
from tests.support.process.command_lines import check_command_line
from tests.support.process.home import new_home
from tests.support.process.server import Serve
from tests.support.process.wire import token_path
from tests.support.security.keys import MASTER_KEY

UNIT = ROOT / "deploy" / "systemd" / "token-vault.service"
LINES = [line.partition("=") for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
MAXIMUM_EXPOSURE = 1.3
PR_SET_MDWE = 65
NO_MDWE = 99


def _all(name: str) -> list[str]:
    return [value for key, _, value in LINES if key == name]


def test_the_unit_starts_a_command_of_the_program() -> None:
    (line,) = _all("ExecStart")
    program, *words = shlex.split(line)
    check_command_line([Path(program).name, *words])
    (stop_seconds,) = _all("TimeoutStopSec")
    assert int(stop_seconds) > GRACEFUL_SHUTDOWN_SECONDS + STORING_SECONDS


def test_its_settings_start_the_vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for credential in _all("LoadCredential"):
        (tmp_path / credential.partition(":")[0]).write_text(MASTER_KEY)
    for variable in _all("Environment"):
        name, _, value = variable.partition("=")
        monkeypatch.setenv(name, value.replace("%d", str(tmp_path)).replace("%S", str(tmp_path)))
    assert list(load_settings().warnings()) == []


def test_the_vault_runs_with_memory_that_is_never_written_and_executed(tmp_path: Path, serve: Serve) -> None:
    """The part of the hardening that a process can ask of the kernel itself, and that a library could break."""
    assert _all("MemoryDenyWriteExecute") == ["yes"]
    deny = (
        "import ctypes, os, sys\n"
        f"if ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0): sys.exit({NO_MDWE})\n"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    known = subprocess.run([sys.executable, "-c", deny, "true"], check=False).returncode
    if known == NO_MDWE:
        pytest.skip("the kernel is older than 6.3")
    with serve(new_home(tmp_path), prefix=(sys.executable, "-c", deny)) as server, server.client() as client:
        assert client.put(token_path(uuid4()), json={"access_token": "kept"}).status_code == 201


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/vault/bin/token-vault", "/bin/true"))
    # without a manager, warnings of this machine's other units may come too
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert UNIT.name not in verified.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"exposure level for token-vault.service: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= MAXIMUM_EXPOSURE
    assert f"exposure of {MAXIMUM_EXPOSURE}" in (ROOT / "docs" / "containers.md").read_text()
