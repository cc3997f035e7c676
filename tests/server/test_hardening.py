"""Protection of a running vault, as Linux reports it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from app.server.hardening import swap_is_in_use
from tests.support.paths import ROOT
from tests.support.process.home import COMMAND, at_its_start, environment, new_home, require_refusal, run
from tests.support.process.server import Serve, Server
from tests.support.process.workers import workers_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
IS_ROOT = os.geteuid() == 0
NEEDS_SETPRIV = pytest.mark.skipif(not (IS_ROOT and shutil.which("setpriv")), reason="needs root and setpriv")
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


def _events(server: Server) -> list[str]:
    return [json.loads(line)["event"] for line in server.output.splitlines()]


def _may_lock_memory() -> bool:
    return bool(int(_status(os.getpid(), "CapEff"), 16) >> IPC_LOCK & 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[Server]:
    """Two workers that run as this user."""
    with serve(new_home(tmp_path_factory.mktemp("hardened")), workers=2, installed=True) as server:
        yield server


@pytest.fixture(scope="module")
def unprivileged(tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[Server]:
    """Two workers that run as a user without privileges, except to find the programs wherever they are installed."""
    folder = tmp_path_factory.mktemp("unprivileged")
    for path in (folder.parent, folder):
        os.chown(path, SOMEBODY, SOMEBODY)
    prefix = (*AS_SOMEBODY, "--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override")
    with serve(new_home(folder), workers=2, prefix=prefix) as server:
        yield server


def test_no_process_leaves_a_core_dump(server: Server) -> None:
    for process in {server.pid, *workers_of(server)}:
        assert _limit(process, "Max core file size") == ["0", "0"]
        if IS_ROOT:
            assert int(_limit(process, "Max open files")[0]) >= 4096


@pytest.mark.skipif(not _may_lock_memory(), reason="this user may not lock memory")
def test_every_process_that_reads_keys_locks_its_memory(server: Server) -> None:
    for process in {server.pid, *workers_of(server)}:
        assert int(_status(process, "VmLck")) > 50_000, "the supervisor has read the keys too"
        assert int(_status(process, "VmRSS")) < 150_000, "kB: stacks and arenas are not filled"
    assert _events(server).count("memory_locked") == 2


@pytest.mark.skipif(not IS_ROOT, reason="only root is warned about")
def test_running_as_root_is_warned_about(server: Server) -> None:
    assert _events(server).count("runs_as_root") == 1


@NEEDS_SETPRIV
def test_an_unprivileged_vault_cannot_be_read_by_its_user(unprivileged: Server) -> None:
    for process in (unprivileged.pid, *workers_of(unprivileged)):
        assert _status(process, "Uid") == str(SOMEBODY)
        # /proc belongs to root if a process must not be dumped, else to its user
        assert Path(f"/proc/{process}/environ").stat().st_uid == 0
        assert _limit(process, "Max core file size") == ["0", "0"]
        _, hard = _limit(process, "Max locked memory")
        if hard != "unlimited":
            assert _status(process, "VmLck") == "0", "under a limit that is too small, later allocations fail"
    assert "runs_as_root" not in _events(unprivileged)


@NEEDS_SETPRIV
def test_no_process_shows_its_user_a_secret_in_its_environment(unprivileged: Server) -> None:
    children = _children(unprivileged.pid)
    assert len(children) == 3, "two workers and the resource tracker"
    settings = unprivileged.home.settings
    for process in (unprivileged.pid, *children):
        shown = subprocess.run(
            [*AS_SOMEBODY, "cat", f"/proc/{process}/environ"], capture_output=True, check=False
        ).stdout
        assert settings["TOKEN_ENCRYPTION_KEY"].encode() not in shown
        assert settings["SERVICE_KEYS"].encode() not in shown
    # even root finds none there, so none is shown before a worker has protected itself
    for process in children:
        started_with = Path(f"/proc/{process}/environ").read_bytes()
        assert b"PATH=" in started_with
        assert b"TOKEN_ENCRYPTION_KEY" not in started_with
        assert b"SERVICE_KEYS" not in started_with


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


# stops each worker at the first system call of its protection, so that its memory can be searched
STOP_WORKERS = """
import os, signal, sys

if "--multiprocessing-fork" in sys.orig_argv:
    armed = [True]

    def stop(event, arguments):
        if event == "resource.setrlimit" and armed:
            armed.clear()
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(stop)
"""


@pytest.mark.skipif(not IS_ROOT, reason="only root can always read the memory of another process")
def test_a_worker_is_protected_before_a_secret_is_in_its_memory(tmp_path: Path, serve: Serve) -> None:
    home = new_home(tmp_path, **at_its_start(STOP_WORKERS, tmp_path))
    needle = home.settings["TOKEN_ENCRYPTION_KEY"].encode()
    stopped: dict[int, bool] = {}
    up = threading.Event()

    def search_stopped_workers() -> None:
        while not up.wait(0.02):
            for process in _workers_started_in(tmp_path):
                with suppress(OSError):  # it ended meanwhile
                    if _status(process, "State") == "T":
                        stopped[process] = needle in _memory(process)
                        os.kill(process, signal.SIGCONT)

    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(search_stopped_workers)
        try:
            with serve(home, workers=2, installed=True) as server:
                workers = workers_of(server)
                assert all(needle in _memory(process) for process in workers), "the search finds a secret"
        finally:
            up.set()
        searching.result()
    assert stopped.keys() >= set(workers)
    assert set(stopped.values()) == {False}


def _workers_started_in(folder: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                command_line = (entry / "cmdline").read_bytes()
                if b"--multiprocessing-fork" in command_line and (entry / "cwd").readlink() == folder:
                    yield int(entry.name)


def _memory(process: int) -> bytes:
    """Return the memory of a process that it may write to."""
    pieces = []
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            addresses, permissions, *_ = line.split()
            if permissions.startswith("rw"):
                start, end = (int(address, 16) for address in addresses.split("-"))
                with suppress(OSError, OverflowError):  # a page of a device
                    memory.seek(start)
                    pieces.append(memory.read(end - start))
    return b"".join(pieces)


# makes the kernel refuse to forbid debuggers, in programs with this argument
REFUSE_PROTECTION = """
import ctypes, os, sys

if ARGUMENT in sys.orig_argv:
    class Filter(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.POINTER(Filter))]

    prctl = ctypes.CDLL(None).prctl
    filters = (Filter * 6)(  # EPERM for prctl(PR_SET_DUMPABLE); linux/filter.h, linux/seccomp.h
        Filter(0x20, 0, 0, 0), Filter(0x15, 0, 3, 157),
        Filter(0x20, 0, 0, 16), Filter(0x15, 0, 1, 4),
        Filter(6, 0, 0, 0x00050001), Filter(6, 0, 0, 0x7FFF0000),
    )
    assert prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert prctl(22, 2, ctypes.byref(Program(6, filters)), 0, 0) == 0
"""
ONLY_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter has a system call's number")


@ONLY_X86
def test_a_command_that_cannot_be_protected_ends_at_once(tmp_path: Path) -> None:
    settings = at_its_start(REFUSE_PROTECTION.replace("ARGUMENT", "'health'"), tmp_path)
    done = run(COMMAND, "health", folder=tmp_path, settings=settings)
    require_refusal(done, 2, "cannot be protected", "Operation not permitted")


@ONLY_X86
def test_a_worker_that_cannot_be_protected_does_not_serve(tmp_path: Path) -> None:
    code = REFUSE_PROTECTION.replace("ARGUMENT", "'--multiprocessing-fork'")
    home = new_home(tmp_path, **at_its_start(code, tmp_path))
    done = run(COMMAND, "serve", "--workers", "2", folder=tmp_path, settings=home.settings)
    assert done.returncode == 1
    assert "cannot be protected" in done.stderr
    assert "ready" not in done.stdout


# ends the first workers before they run any of the vault's code
END_WORKERS = """
import os, pathlib, sys

if "--multiprocessing-fork" in sys.orig_argv:
    ended = pathlib.Path(FOLDER, "ended")
    ended.mkdir(exist_ok=True)
    if len(list(ended.iterdir())) < 6:
        (ended / str(os.getpid())).touch()
        os._exit(9)
"""


def test_a_worker_that_ends_at_its_start_leaves_no_thread_behind(tmp_path: Path, serve: Serve) -> None:
    home = new_home(tmp_path, **at_its_start(END_WORKERS.replace("FOLDER", repr(str(tmp_path))), tmp_path))
    with serve(home, workers=2, installed=True) as server:
        assert len(list((tmp_path / "ended").iterdir())) >= 6
        eventually(lambda: len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 2)  # its own and the log's


# stops a command when it opens the file of its settings
STOP_AT_SETTINGS = """
import os, signal, sys

def stop(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".env"):
        os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(stop)
"""


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_protected_before_it_reads_a_secret(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / ".env").write_text("LOG_LEVEL=ERROR\n")
    variables = environment(at_its_start(STOP_AT_SETTINGS, tmp_path))
    with subprocess.Popen(
        command, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            eventually(lambda: _status(process.pid, "State") == "T", within_seconds=120)
            assert _limit(process.pid, "Max core file size") == ["0", "0"]
            if _may_lock_memory():
                assert int(_status(process.pid, "VmLck")) > 10_000
        finally:
            process.kill()


@NEEDS_SETPRIV
def test_swap_is_warned_about_if_memory_cannot_be_locked(tmp_path: Path) -> None:
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


def test_swap_is_in_use_if_the_table_lists_an_area(tmp_path: Path) -> None:
    table = tmp_path / "swaps"
    assert not swap_is_in_use(table)
    table.write_text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
    assert not swap_is_in_use(table)
    table.write_text(table.read_text() + "/swapfile file 2097148 0 -2\n")
    assert swap_is_in_use(table)
