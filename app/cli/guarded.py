"""What stands around every command."""

from __future__ import annotations

import os
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
            _print_no_more()
            sys.exit(stop.exit_code)


def _print_no_more() -> None:
    """Throw away what a stream still holds: Python would try once more as it ends, and end with a code of its own."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
