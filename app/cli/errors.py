"""Errors that end a command with one line on standard error."""

from __future__ import annotations

import click

from app.config.settings import Settings, SettingsError, load_settings


class UsageError(click.ClickException):
    """A wrong option or setting, or a command that cannot run: exit code 2."""

    exit_code = 2


def settings_or_stop() -> Settings:
    """Load the settings; a wrong one ends the command with the line that names it."""
    try:
        return load_settings()
    except SettingsError as error:
        raise UsageError(str(error)) from None
