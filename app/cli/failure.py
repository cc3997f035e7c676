"""How a command stops: one line on standard error and an exit code."""

from __future__ import annotations

import errno
from typing import Any

import click
import structlog

from app.config.settings import Settings, SettingsError, load_settings
from app.observability.logging import configure_logging, end_log

_log = structlog.get_logger()


class Wrong(click.ClickException):
    """The command or a setting is wrong: exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """A group whose commands stop with one line and exit code 2 for a defect too: nothing was found out.

    The line names the exception's type. Where it came from is logged as the service logs it, to standard output.
    Python's own traceback would print the text of whatever library raised it.
    """

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):  # click's own ways to stop
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # nobody reads on, which click makes quiet
                raise
            if not structlog.is_configured():
                configure_logging(level="CRITICAL", log_format="console")
            _log.critical("failed", exc_info=error)
            end_log()  # before the line that points to it
            message = f"a defect of the vault stopped it, {type(error).__qualname__}: its log line says where"
            raise Wrong(message) from None


def settings_or_stop() -> Settings:
    """Load the settings, or stop with the line that names what is wrong with them."""
    try:
        return load_settings()
    except SettingsError as error:
        raise Wrong(str(error)) from None
