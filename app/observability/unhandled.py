"""Unhandled errors as log lines: lost tasks, failed callbacks and threads, warnings, unraisable exceptions.

Python and asyncio print these with the exception's text and the arguments of the callback. Here each becomes a line
with its type and frames.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import warnings
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

_log = structlog.get_logger()
_PLAIN_WORDS: Final = re.compile(r"(?:[A-Za-z-]+[,;:.!]?(?: |$))*")


def hook_unhandled() -> None:
    """Log what reaches Python's hooks; a hook that another program has set stays."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _log_end_of_program
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _log_unraisable
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_end_of_thread
    warnings.showwarning = _log_warning


def log_unhandled_in_loop(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log the error of a task, a callback or a protocol; for `loop.set_exception_handler`."""
    _log.error("unhandled_in_loop", reason=plain_words(str(context.get("message"))), exc_info=context.get("exception"))


def log_unexpected_end(task: asyncio.Task[None]) -> None:
    """Log the error that ended a background task; for `task.add_done_callback`.

    asyncio reports it only when nothing refers to the task any more, which may be at the end of the process.
    """
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.error("unhandled_in_loop", reason="A background task ended", exc_info=error)


def plain_words(message: str) -> str:
    """Return the words at the start of a message. In asyncio's messages a repr with arguments follows."""
    found = _PLAIN_WORDS.match(message)
    return found[0].strip() if found else ""


def _log_end_of_program(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):  # not a failure, and without text
        sys.__excepthook__(kind, error, trace)
    else:
        _log.critical("failed", exc_info=(kind, error, trace))


def _log_end_of_thread(failed: threading.ExceptHookArgs) -> None:
    if not issubclass(failed.exc_type, SystemExit):
        _log.error("thread_failed", exc_info=failed.exc_value)


def _log_unraisable(failed: sys.UnraisableHookArgs) -> None:
    _log.error("unraisable", exc_info=failed.exc_value)


def _log_warning(  # noqa: PLR0917  Python's signature
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del message, file, line
    place = f"{filename.rpartition('site-packages/')[2]}:{lineno}"
    _log.warning("python_warning", exception=category.__qualname__, frames=[place])
