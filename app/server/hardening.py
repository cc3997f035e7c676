"""Operating-system protection of a process that holds key material."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import Final

import structlog

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
_CAP_IPC_LOCK: Final = 14  # linux/capability.h
_LOCKABLE_BYTES: Final = 4 * 1024**3  # address space counts, of which threads reserve far more than they touch


def protect_process() -> None:
    """Do all of it that is permitted, before the process reads a secret; a second time does no harm."""
    forbid_core_dumps()
    keep_memory_out_of_swap()


def forbid_core_dumps() -> None:
    """Leave no memory behind in a file, and let no other process of this user attach or read it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def keep_memory_out_of_swap() -> bool:
    """Lock what the process has and will have, before it holds a key; whether that is permitted.

    A limit that is too small would let later allocations fail, so then it is not tried.
    """
    return _may_lock() and _lock()


def _may_lock() -> bool:
    if sys.platform != "linux":
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return hard == resource.RLIM_INFINITY or hard >= _LOCKABLE_BYTES or _has_capability(_CAP_IPC_LOCK)


def _has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = status.partition("CapEff:")[2].split()
    return bool(effective) and bool(int(effective[0], 16) >> number & 1)


def _lock() -> bool:
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    # on fault: without it every thread's whole stack would be filled with memory
    flags = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
    failed: int = ctypes.CDLL(None, use_errno=True).mlockall(flags)
    return failed == 0


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
