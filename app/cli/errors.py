"""Errors that end a command: one line on standard error and an exit code."""

from __future__ import annotations

from types import TracebackType

import click
import structlog

from app.config.settings import Settings, SettingsError, load_settings
from app.observability.logging import configure_command_logging, end_log

# --- How a command stops: one line on standard error and an exit code.


class UsageError(click.ClickException):
    """The command or a setting is wrong: exit code 2."""

    exit_code = 2


def settings_or_stop() -> Settings:
    """Load the settings, or stop with the line that names what is wrong with them."""
    try:
        return load_settings()
    except SettingsError as error:
        raise UsageError(str(error)) from None


# --- How a command stops that something was wrong with which nobody thought of.

_log = structlog.get_logger()


def stopped_by(error: Exception) -> UsageError:
    """Log where the error came from, and return the line that names its type, and never its text.

    That goes to standard error in the format for people, and where `serve` has read its settings to its log. What
    cannot be printed is no defect, and the line says why.
    """
    if isinstance(error, OSError) and _was_printing(error.__traceback__):
        return UsageError(f"what there is to say cannot be printed: {error.strerror}")
    if not structlog.is_configured():
        configure_command_logging()
    _log.critical("failed", exc_info=error)
    end_log()  # before the line that points to it
    return UsageError(f"a defect of the vault stopped it, {type(error).__qualname__}: its log line says where")


def _was_printing(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is click.echo.__code__
