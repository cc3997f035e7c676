"""Report an unexpected exception as one line and exit code 2."""

from __future__ import annotations

from types import TracebackType

import click
import structlog

from app.cli.errors import UsageError
from app.observability.logging import configure_command_logging, end_log


def reported(error: Exception) -> UsageError:
    """Log the exception's type and frames, and return the error to show; neither holds the exception's text.

    The log line goes to standard error, or to the log of `serve` once that has read its settings. Output that cannot
    be written, to a full disk for example, is no defect: nothing is logged and the error says why.
    """
    if isinstance(error, OSError) and _is_from_echo(error.__traceback__):
        return UsageError(f"the output cannot be written: {error.strerror}")
    if not structlog.is_configured():
        configure_command_logging()
    structlog.get_logger().critical("failed", exc_info=error)
    end_log()  # the log line comes before the error that refers to it
    return UsageError(f"internal error: {type(error).__qualname__}. The log line above says where; please report it")


def _is_from_echo(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is click.echo.__code__
