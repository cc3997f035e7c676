"""The files that AUDIT_LOG names: `audit.jsonl` stands for `audit.<chain>.<number>.jsonl` of every process."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.audit.lines import CHAIN_PATTERN

_NAME: Final = re.compile(rf"(.*)\.({CHAIN_PATTERN})\.([0-9]{{6,12}})(\.[^.]*)?")


@dataclass(frozen=True, slots=True)
class Family:
    """The files beside `path` that are named after it."""

    path: Path

    @property
    def directory(self) -> Path:
        return self.path.parent

    def file(self, chain: str, number: int) -> Path:
        """Return where the chain's file of this number is, counted from 1."""
        return self.path.with_name(f"{self.path.stem}.{chain}.{number:06d}{self.path.suffix}")

    def chains(self) -> dict[str, list[Path]]:
        """Return the files that are there, by chain, each chain's in order."""
        found: dict[str, list[Path]] = {}
        with os.scandir(self.directory) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            parts = _NAME.fullmatch(name)
            if parts and (parts[1], parts[4] or "") == (self.path.stem, self.path.suffix):
                found.setdefault(parts[2], []).append(self.directory / name)
        return found

    def make_directory(self) -> None:
        """Create the directory for its owner alone, where it is missing; raises `OSError`."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def files(self) -> list[Path]:
        return [path for chain in self.chains().values() for path in chain]


def demand_writable(family: Family) -> None:
    """Create the directory where it is missing, and prove that files can be made in it; raises `OSError`."""
    family.make_directory()
    draft = family.directory / f".{family.path.name}.{secrets.token_hex(8)}.probe"
    try:
        with draft.open("xb") as file:
            file.write(b"\n")
    finally:
        draft.unlink(missing_ok=True)


def chain_of_file(path: Path) -> str | None:
    """Return the chain that a file belongs to by its name; `None` where it may hold anything."""
    parts = _NAME.fullmatch(path.name)
    return parts[2] if parts else None


def is_being_written(path: Path) -> bool:
    """Whether a process holds the lock that a chain's newest file is under while it is written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
