"""Stops what a test run started, when the run itself no longer can.

A fixture's finaliser does not run when pytest is killed, and PostgreSQL, which
detaches itself, would then run for ever. So a small process of its own holds the
other end of a pipe: the kernel closes the pipe however its owner ends, and what is
still on the list is stopped then.

The list arrives as lines on standard input: `watch PID SIGNAL`, `forget PID`,
`folder PATH`, and `done`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

_GRACE_SECONDS = 5.0


class Reaper:
    """The owner's end. Process ids must be of processes that the owner started."""

    def __init__(self) -> None:
        """Start the watching process."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            # not the owner's: whoever reads those to the end would wait for us
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            # Ctrl-C goes to the whole foreground group: this one must outlive it
            start_new_session=True,
        )

    def watch(self, pid: int, stop_signal: signal.Signals) -> None:
        """Stop this process with this signal, should the owner end before it says `forget`."""
        self._tell(f"watch {pid} {stop_signal.value}")

    def forget(self, pid: int) -> None:
        """The owner has stopped this process."""
        self._tell(f"forget {pid}")

    def remove_folder(self, folder: Path) -> None:
        """Delete this folder, should the owner end before it says `close`."""
        self._tell(f"folder {folder}")

    def close(self) -> None:
        """Everything is stopped and deleted: there is nothing left to do."""
        self._tell("done")
        self._process.communicate(timeout=_GRACE_SECONDS)

    def _tell(self, line: str) -> None:
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            raise RuntimeError("the reaper is closed")
        pipe.write(f"{line}\n")
        pipe.flush()


def _stop(pid: int, stop_signal: int) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    try:
        os.kill(pid, stop_signal)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # gone (or even replaced by somebody else's)
        return


def _keep_watch(lines: TextIO) -> None:
    processes: dict[int, int] = {}
    folders: list[str] = []
    for line in lines:
        match line.rstrip("\n").split(" ", maxsplit=1):
            case ["watch", arguments]:
                pid, stop_signal = arguments.split()
                processes[int(pid)] = int(stop_signal)
            case ["forget", pid]:
                processes.pop(int(pid), None)
            case ["folder", folder]:
                folders.append(folder)
            case _:  # done
                return
    for process, how in reversed(processes.items()):
        _stop(process, how)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _keep_watch(sys.stdin)
