"""What stands around every command."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from app.server.protection import protect_process


class Guarded(click.Command):
    """A command whose process is protected first of all, and that stops with one line and exit code 2 for a defect too.

    Nothing was found out then, and Python's own traceback would print the text of whatever library raised it.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  click's
        protect_process()
        try:
            return super().main(*arguments, **options)
        except Exception as error:  # noqa: BLE001  what click knows it has handled
            from app.cli.defect import stopped_by  # noqa: PLC0415  it needs the log, which most commands do without

            stop = stopped_by(error)
            with suppress(OSError):
                stop.show()
            sys.exit(stop.exit_code)
