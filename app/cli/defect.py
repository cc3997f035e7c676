"""How a command stops that something was wrong with which nobody thought of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import structlog

from app.cli.failure import Wrong
from app.observability.logging import configure_command_logging, end_log

if TYPE_CHECKING:
    from types import TracebackType

_log = structlog.get_logger()


def stopped_by(error: Exception) -> Wrong:
    """Log where the error came from, and return the line that names its type, and never its text.

    That goes to standard error in the format for people, and where `serve` has read its settings to its log. What
    cannot be printed is no defect, and the line says why.
    """
    if isinstance(error, OSError) and _was_printing(error.__traceback__):
        return Wrong(f"what there is to say cannot be printed: {error.strerror}")
    if not structlog.is_configured():
        configure_command_logging()
    _log.critical("failed", exc_info=error)
    end_log()  # before the line that points to it
    return Wrong(f"a defect of the vault stopped it, {type(error).__qualname__}: its log line says where")


def _was_printing(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is click.echo.__code__
