"""Fork the workers of a prepared server, which would otherwise start as new programs and import everything again.

The configuration reaches a worker as before: pickled, through a pipe, and without the variables that may be secret.
Tests of how workers start, end and protect themselves run the installed program instead.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from multiprocessing import spawn, util
from typing import Any, Final, Never

from prometheus_client import values

_new_program: Final = util.spawnv_passfds
_FORKING: Final = "--multiprocessing-fork"  # the argument of a worker's program; the resource tracker has none


def fork_workers() -> None:
    """Let `multiprocessing` fork this process where it would start a worker's program."""
    util.spawnv_passfds = _fork


def _fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    line = [os.fsdecode(one) for one in args]
    if _FORKING not in line:
        return _new_program(path, args, passfds)
    worker = os.fork()
    if not worker:
        _work(line, passfds)
    return worker


def _work(line: list[str], inherited: Sequence[int]) -> Never:
    """Become what the program would be: with its descriptors, its signals and its exit code."""
    code: object = 255
    try:
        low = 3
        for descriptor in sorted(inherited):
            os.closerange(low, descriptor)
            low = descriptor + 1
        os.closerange(low, os.sysconf("SC_OPEN_MAX"))
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]  # the folder is read on import
        sys.argv = ["-c", _FORKING]
        spawn.spawn_main(**{name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", " ".join(line))})
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code if isinstance(code, int) else 1)
