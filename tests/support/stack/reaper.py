"""Stop the processes of a test run that was killed.

Fixtures are not torn down when pytest is killed, and PostgreSQL, which detaches itself, would run for ever. A small
process therefore reads from a pipe that the kernel closes however its owner ends, and then stops every process still
on its list.

The list arrives as lines on standard input: `watch PID SIGNAL`, `forget PID`, `folder PATH`, and `done`.
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
    """The owner's side. Process ids must be of processes that the owner started."""

    def __init__(self) -> None:
        """Start the reaper process."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            # not the owner's outputs: a program that reads those to the end would wait for the reaper
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            # Ctrl-C goes to the whole foreground group, and the reaper must outlive it
            start_new_session=True,
        )

    def watch(self, pid: int, stop_signal: signal.Signals) -> None:
        """Stop this process with this signal if the owner ends before it calls `forget`."""
        self._send(f"watch {pid} {stop_signal.value}")

    def forget(self, pid: int) -> None:
        """Take a process that the owner has stopped off the list."""
        self._send(f"forget {pid}")

    def remove_folder(self, folder: Path) -> None:
        """Delete this folder if the owner ends before it calls `close`."""
        self._send(f"folder {folder}")

    def close(self) -> None:
        """End the reaper, because everything is stopped and deleted."""
        self._send("done")
        self._process.communicate(timeout=_GRACE_SECONDS)

    def _send(self, line: str) -> None:
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
    except (ProcessLookupError, PermissionError):  # ended, or its id belongs to another user's process now
        return


def _stop_at_end_of_input(lines: TextIO) -> None:
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
    _stop_at_end_of_input(sys.stdin)
