"""Operating-system protection of a process that holds key material."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
_CAP_IPC_LOCK: Final = 14  # linux/capability.h
_LOCKABLE_BYTES: Final = 4 * 1024**3  # the limit counts address space, and threads reserve far more than they touch
_OPEN_FILES: Final = 4096


class UnprotectedProcessError(Exception):
    """The system refuses to keep other processes out, so this process must get no secret."""


def protect_process() -> None:
    """Forbid core dumps, and lock the memory as far as permitted. Call it before the process reads a secret.

    Raises `UnprotectedProcessError`.
    """
    forbid_core_dumps()
    lock_memory()


def forbid_core_dumps() -> None:
    """Disable core dumps.

    On Linux also keep other processes of this user from attaching and from reading memory or environment. Raises
    `UnprotectedProcessError`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise UnprotectedProcessError(
            "the process cannot be protected from other processes of its user: "
            f"prctl(PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}; a seccomp filter may refuse it"
        )


def lock_memory() -> bool:
    """Keep all present and future memory out of swap; return whether that is permitted. Repeating it does no harm."""
    if not _may_lock_memory():
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    # without ONFAULT the kernel would fill the whole stack of every thread
    failed: int = ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    return failed == 0


def _may_lock_memory() -> bool:
    """Whether RLIMIT_MEMLOCK is large enough; under a smaller one, allocations after `mlockall` would fail."""
    if sys.platform != "linux":
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return hard == resource.RLIM_INFINITY or hard >= _LOCKABLE_BYTES or _has_capability(_CAP_IPC_LOCK)


def _has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = status.partition("CapEff:")[2].split()
    return bool(effective) and bool(int(effective[0], 16) >> number & 1)


def lock_memory_and_log(*, swaps: Path = Path("/proc/swaps")) -> None:
    """Lock the memory and log it; if that is not permitted, warn if swap is in use."""
    import structlog  # noqa: PLC0415  slow, and most commands never log

    log = structlog.get_logger()
    if lock_memory():
        log.info("memory_locked")
    elif swap_is_in_use(swaps):
        log.warning(
            "memory_may_be_swapped",
            reason="swap is in use; switch it off, or allow RLIMIT_MEMLOCK=unlimited (or CAP_IPC_LOCK)",
        )


def swap_is_in_use(swaps: Path) -> bool:
    """Whether the table of swap areas lists any below its heading."""
    try:
        return len(swaps.read_text().splitlines()) > 1
    except OSError:
        return False


def warn_about_root() -> None:
    if os.geteuid() == 0:
        import structlog  # noqa: PLC0415  slow, and most commands never log

        structlog.get_logger().warning(
            "runs_as_root", reason="the vault needs no privileges; run it as an unprivileged user"
        )


def raise_open_file_limit() -> None:
    """Raise the soft limit of open files, often 1 024, to 4 096 if permitted, because each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
