"""How a command stops that something was wrong with which nobody thought of."""

from __future__ import annotations

from typing import Self

import structlog

from app.cli.failure import Wrong
from app.observability.logging import configure_logging, end_log

_log = structlog.get_logger()


class Defect(Wrong):
    """Names the exception's type, and never its text."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Log where it came from as the service does, to standard output."""
        if not structlog.is_configured():
            configure_logging(level="CRITICAL", log_format="console")
        _log.critical("failed", exc_info=error)
        end_log()  # before the line that points to it
        return cls(f"a defect of the vault stopped it, {type(error).__qualname__}: its log line says where")
