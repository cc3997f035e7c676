"""A person's terminal: an interactive bash on a pseudo-terminal, into which a whole block is pasted at once."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from tests.support.process.home import AS_USERS_HAVE_IT

PASTE_SECONDS: Final = 240.0
_READY: Final = "ready> "
_CONTROL: Final = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]|\r")


class Terminal:
    """One bash for the `with` block, in `folder`."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        ours, theirs = pty.openpty()
        self._descriptor = ours
        self._shown = ""
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", "--wait", "bash", "--norc", "--noprofile", "-i"],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "TERM": "xterm",
                "PS1": _READY,
                **AS_USERS_HAVE_IT,
                **(environment or {}),
            },
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        self.wait_for(_READY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)  # hangs up
        try:
            self._shell.wait(10)
        except subprocess.TimeoutExpired:
            self._shell.send_signal(signal.SIGKILL)
            self._shell.wait()

    def paste(self, block: str, *, bracketed: bool = True) -> None:
        """Paste a block and press Enter; without `bracketed`, bash gets it as lines that were typed."""
        lines = block.rstrip("\n").replace("\n", "\r")
        self._write(f"\x1b[200~{lines}\x1b[201~\r" if bracketed else f"{lines}\r")

    def printed(self) -> str:
        """Return what the terminal has shown once all that was pasted has ended."""
        self._write("echo 'all has'' ended'\r")
        return self.wait_for("all has ended\n")

    def wait_for(self, text: str) -> str:
        """Return what the terminal has shown since its start, once that includes the text."""
        deadline = time.monotonic() + PASTE_SECONDS
        while text not in self._shown:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the terminal shows no {text!r}:\n{self._shown}")
            if select.select([self._descriptor], [], [], 1.0)[0]:
                self._shown += _CONTROL.sub("", os.read(self._descriptor, 65_536).decode(errors="replace"))
        return self._shown

    def _write(self, text: str) -> None:
        os.write(self._descriptor, text.encode())
