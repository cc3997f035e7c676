"""`token-vault rewrap` as a process, and its output."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.process.home import COMMAND, COMMAND_SECONDS, environment, token_vault
from tests.support.process.prepared import PreparedCommand

_COUNTS: Final = ("due", "rewrapped", "overtaken", "unreadable", "in doubt", "remaining", "seconds", "rows/s")
_LINE: Final = re.compile(r"^([a-z/]+(?: [a-z]+)?) {2,}([0-9][0-9,.]*|unknown)(?:  (.*))?$")
_PROGRESS: Final = re.compile(
    r"^(?:counting|[0-9,]+(?: of [0-9,]+)? (?:read|done), .*"
    r"|waiting  key_unavailable: .*|recovered)\n",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Printed:
    """The exit code and the output of the command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def counts(self) -> dict[str, int | None]:
        """The counts of the summary, `None` for unknown."""
        lines = [found for line in self.stdout.splitlines() if (found := _LINE.fullmatch(line))]
        names = [found[1] for found in lines]
        assert ["rewrapped" if name == "readable" else name for name in names] == list(_COUNTS)
        numbers = {found[1]: found[2].replace(",", "") for found in lines if found[1] not in {"seconds", "rows/s"}}
        return {name: None if number == "unknown" else int(number) for name, number in numbers.items()}

    @property
    def unreadable(self) -> dict[str, str]:
        """The unreadable rows by id, with the code of the error."""
        lines = re.findall(r"^unreadable  (\S+)  ([a-z_]+): .+$", self.stdout, re.MULTILINE)
        found = dict(lines)
        assert len(found) == len(lines), "a row is printed once"
        return found

    @property
    def verdict(self) -> str:
        return self.stdout.splitlines()[-1]


def rewrap(*arguments: str, folder: Path, settings: Mapping[str, str]) -> Printed:
    """Run the command to its end."""
    done = token_vault("rewrap", *arguments, folder=folder, settings=settings)
    return printed(done)


def printed(done: subprocess.CompletedProcess[str]) -> Printed:
    return Printed(done.returncode, done.stdout, done.stderr)


def started(*arguments: str, folder: Path, settings: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the installed command; its outputs are pipes."""
    return subprocess.Popen(
        [COMMAND, "rewrap", *arguments],
        cwd=folder,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def prepared(*arguments: str, folder: Path, settings: Mapping[str, str]) -> PreparedCommand:
    """Start the command with the libraries imported."""
    return PreparedCommand(COMMAND, ("rewrap", *arguments), folder=folder, environment=environment(settings))


def ended(process: subprocess.Popen[str], *, by: signal.Signals | None = None) -> Printed:
    """Wait for the end, perhaps after a signal."""
    if by is not None:
        process.send_signal(by)
    try:
        stdout, stderr = process.communicate(timeout=COMMAND_SECONDS)
    finally:
        process.kill()
    return Printed(process.returncode, stdout, stderr)


def without_progress(printed: str) -> str:
    """Remove the lines about progress, and about waiting for a key, which a busy machine derives late."""
    return _PROGRESS.sub("", printed)
