"""How a command stops: one line on standard error and an exit code."""

from __future__ import annotations

import click

from app.config.settings import Settings, SettingsError, load_settings


class Wrong(click.ClickException):
    """The command or a setting is wrong: exit code 2."""

    exit_code = 2


def settings_or_stop() -> Settings:
    """Load the settings, or stop with the line that names what is wrong with them."""
    try:
        return load_settings()
    except SettingsError as error:
        raise Wrong(str(error)) from None
