"""What Linux says of a running vault."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from app.server.hardening import swap_is_in_use
from tests.support.paths import ROOT
from tests.support.process.home import COMMAND, Home, environment, new_home
from tests.support.process.server import Serve, Server
from tests.support.process.started import Started, started
from tests.support.process.workers import workers_of
from tests.support.stack.reaper import Reaper
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
IS_ROOT = os.geteuid() == 0
IPC_LOCK = 14
SOMEBODY = 54_321
AS_SOMEBODY = ("setpriv", "--reuid", str(SOMEBODY), "--regid", str(SOMEBODY), "--clear-groups")
SCRIPT = ROOT / "scripts" / "migrate_to_kms.py"
COMMANDS = {
    "rewrap": [COMMAND, "rewrap"],
    "keys retire": [COMMAND, "keys", "retire", "1"],
    "audit verify": [COMMAND, "audit", "verify"],
    "health": [COMMAND, "health"],
    "the script": [sys.executable, str(SCRIPT)],
}


def _limit(process: int, name: str) -> list[str]:
    [line] = [line for line in Path(f"/proc/{process}/limits").read_text().splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()[:2]


def _status(process: int, name: str) -> str:
    return Path(f"/proc/{process}/status").read_text().partition(f"{name}:")[2].split()[0]


def _events(server: Server | Started) -> list[str]:
    return [json.loads(line)["event"] for line in server.output.splitlines()]


def _may_lock_memory() -> bool:
    return bool(int(_status(os.getpid(), "CapEff"), 16) >> IPC_LOCK & 1)


def test_no_process_of_it_leaves_a_core_dump(tmp_path: Path, serve: Serve) -> None:
    with serve(new_home(tmp_path), workers=2) as server:
        for process in {server.process.pid, *workers_of(server)}:
            assert _limit(process, "Max core file size") == ["0", "0"]
            assert int(_limit(process, "Max open files")[0]) >= 4096 or IS_ROOT is False


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_protected_before_it_reads_a_secret(tmp_path: Path, command: list[str]) -> None:
    os.mkfifo(tmp_path / ".env")  # whoever reads it stands still until it is written
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment({}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            writing = _once_it_is_read(tmp_path / ".env")
            assert _limit(process.pid, "Max core file size") == ["0", "0"]
            if _may_lock_memory():
                assert int(_status(process.pid, "VmLck")) > 10_000
            os.close(writing)
        finally:
            process.kill()


def _once_it_is_read(fifo: Path) -> int:
    """Wait for a reader, and return what it reads from: it goes on once that is closed."""
    opened: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    eventually(is_read, within_seconds=60)
    return opened[0]


@pytest.mark.skipif(not _may_lock_memory(), reason="this user may not lock memory")
def test_every_process_that_reads_keys_locks_its_memory_where_that_is_permitted_and_uses_no_more(
    tmp_path: Path, serve: Serve
) -> None:
    with serve(new_home(tmp_path), workers=2) as server:
        for process in {server.process.pid, *workers_of(server)}:
            assert int(_status(process, "VmLck")) > 50_000, "the supervisor has read the keys too"
            assert int(_status(process, "VmRSS")) < 150_000, "kB: stacks and arenas are not filled"
        assert _events(server).count("memory_locked") == 2


def _as_somebody(folder: Path) -> tuple[str, ...]:
    """Give the folder to a user without privileges, and return what begins a command of theirs."""
    for path in (folder, *folder.iterdir()):
        os.chown(path, SOMEBODY, SOMEBODY)
    # so that it finds the programs wherever they are installed
    return (*AS_SOMEBODY, "--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override")


@pytest.mark.skipif(not (IS_ROOT and shutil.which("setpriv")), reason="takes root and setpriv to become somebody else")
def test_as_a_plain_user_it_cannot_be_looked_into_and_serves_without_locked_memory(
    tmp_path: Path, stack_reaper: Reaper
) -> None:
    with started(new_home(tmp_path), reaper=stack_reaper, prefix=_as_somebody(tmp_path)) as vault:
        assert _status(vault.pid, "Uid") == str(SOMEBODY)
        # of a process that may not be dumped /proc belongs to root, and to its user otherwise
        assert Path(f"/proc/{vault.pid}/environ").stat().st_uid == 0
        assert _limit(vault.pid, "Max core file size") == ["0", "0"]
        _, hard = _limit(vault.pid, "Max locked memory")
        if hard != "unlimited":
            assert _status(vault.pid, "VmLck") == "0", "a limit that is too small lets later allocations fail"
        assert "runs_as_root" not in _events(vault)


@pytest.mark.skipif(not (IS_ROOT and shutil.which("setpriv")), reason="takes root and setpriv to become somebody else")
def test_no_process_of_the_group_shows_its_user_a_secret_in_its_environment(
    tmp_path: Path, stack_reaper: Reaper
) -> None:
    home = new_home(tmp_path)
    with started(home, reaper=stack_reaper, workers=2, prefix=_as_somebody(tmp_path)) as vault:
        children = _children(vault.pid)
        assert len(children) == 3, "two workers and the resource tracker"
        for process in (vault.pid, *children):
            shown = subprocess.run(
                [*AS_SOMEBODY, "cat", f"/proc/{process}/environ"], capture_output=True, check=False
            ).stdout
            assert all(secret.encode() not in shown for secret in _secrets_of(home)), process
        # even root finds none there: nothing is shown while a worker has not asked for protection yet
        for process in children:
            started_with = Path(f"/proc/{process}/environ").read_bytes()
            assert b"PATH=" in started_with
            assert b"TOKEN_ENCRYPTION_KEY" not in started_with
            assert b"SERVICE_KEYS" not in started_with


def _secrets_of(home: Home) -> tuple[str, str]:
    return home.settings["TOKEN_ENCRYPTION_KEY"], home.settings["SERVICE_KEYS"]


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.skipif(not IS_ROOT, reason="only root is warned about")
def test_root_is_warned_about(tmp_path: Path, stack_reaper: Reaper) -> None:
    with started(new_home(tmp_path), reaper=stack_reaper) as vault:
        assert _events(vault).count("runs_as_root") == 1


@pytest.mark.skipif(not (IS_ROOT and shutil.which("setpriv")), reason="takes root and setpriv to give up a capability")
def test_where_memory_cannot_be_locked_swap_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "swaps").write_text("Filename Type Size\n/dev/sda2 partition 8388604\n")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20));"
        "from app.server.hardening import lock_memory_and_log; from pathlib import Path;"
        f"lock_memory_and_log(swaps=Path({str(tmp_path / 'swaps')!r}));"
        "print(Path('/proc/self/status').read_text().partition('VmLck:')[2].split()[0])"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert "memory_may_be_swapped" in done.stdout


def test_swap_is_in_use_where_the_table_names_an_area(tmp_path: Path) -> None:
    table = tmp_path / "swaps"
    assert not swap_is_in_use(table)
    table.write_text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
    assert not swap_is_in_use(table)
    table.write_text(table.read_text() + "/swapfile file 2097148 0 -2\n")
    assert swap_is_in_use(table)
