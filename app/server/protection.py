"""What keeps key material from leaving a process by way of the operating system: core dumps, debuggers and swap.

Linux undoes some of it in each new program, so each has to ask for it itself. It needs next to nothing to be imported,
for it comes before everything else.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import Final

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
