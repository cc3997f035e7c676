"""What the vault asks of the operating system and says in its log: memory that is locked, open files, no privilege."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

import structlog

from app.server.protection import keep_memory_out_of_swap

_log = structlog.get_logger()
_OPEN_FILES: Final = 4096


def allow_open_files() -> None:
    """Raise the limit of open files, which is often 1 024, towards what the limit of connections needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def lock_memory(*, swaps: Path = Path("/proc/swaps")) -> None:
    """Keep all memory out of swap and say so; where that is not permitted, warn if there is swap in use."""
    if keep_memory_out_of_swap():
        _log.info("memory_locked")
    elif swap_is_in_use(swaps):
        _log.warning(
            "memory_may_be_swapped",
            reason="swap is in use; switch it off, or allow RLIMIT_MEMLOCK=unlimited (or CAP_IPC_LOCK)",
        )


def warn_about_root() -> None:
    if os.geteuid() == 0:
        _log.warning("runs_as_root", reason="the vault needs no privilege; run it as a user of its own")


def swap_is_in_use(swaps: Path) -> bool:
    """Whether the table of swap areas, whose first line is its heading, names any."""
    try:
        return len(swaps.read_text().splitlines()) > 1
    except OSError:
        return False
