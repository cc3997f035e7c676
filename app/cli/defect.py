"""How a command stops that something was wrong with which nobody thought of."""

from __future__ import annotations

import structlog

from app.cli.failure import Wrong
from app.observability.logging import configure_command_logging, end_log

_log = structlog.get_logger()


def stopped_by(error: Exception) -> Wrong:
    """Log where the error came from, and return the line that names its type, and never its text.

    That goes to standard error in the format for people, and where `serve` has read its settings to its log.
    """
    if not structlog.is_configured():
        configure_command_logging()
    _log.critical("failed", exc_info=error)
    end_log()  # before the line that points to it
    return Wrong(f"a defect of the vault stopped it, {type(error).__qualname__}: its log line says where")
