"""Log lines as JSON for machines or in colour for people, with nothing of third parties in them.

Libraries log what they handle: URLs with user ids, headers with keys, rows in exception texts. So their loggers are
held at WARNING whatever LOG_LEVEL says, what they say is logged without the values that they put into it, and an
exception is logged as its type and the lines of code it passed, never as its text. `app.observability.log_fields` says
which fields a line may have. Lines that standard output does not take are lost: a full disk below the log takes no call
down.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from app.observability.log_fields import keep_allowed_fields

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import Processor

_UVICORN = "uvicorn.error"  # its lifecycle messages; its access log would print query strings


def configure_logging(*, level: str, log_format: str) -> None:
    """Send our own lines and the standard library's to standard output in one format."""
    output = cast("TextIO", _UnfailingOutput())
    logging.raiseExceptions = False  # it would print a line that cannot be formatted, arguments and all
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_exception,
        keep_allowed_fields,
    ]
    renderer: Processor
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    else:
        # one encoder for all lines; json.dumps would make one for each
        renderer = structlog.processors.JSONRenderer(serializer=_to_json)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, _withhold_values, *shared, _withhold_traceback],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            pass_foreign_args=True,
            use_get_message=False,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger(_UVICORN).setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level]))


class _UnfailingOutput:
    """Standard output for those who must not fail with it."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a full disk, a pipe without a reader; closed
            sys.stdout.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stdout.flush()


_encoder = json.JSONEncoder(default=repr, ensure_ascii=False)


def _to_json(event: object, **_: object) -> str:
    return _encoder.encode(event)


def _name_exception(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace an exception by its type and the code that it passed through."""
    info = event.pop("exc_info", None)
    error = info[1] if isinstance(info, tuple) else info if isinstance(info, BaseException) else None
    if info is True:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = type(error).__qualname__
        event["frames"] = [
            f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
    return event


def _withhold_values(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leave a library's message as its programmer wrote it, without the values; uvicorn's alone becomes whole."""
    values = event.pop("positional_args", None)
    if values and event["_record"].name == _UVICORN:
        event["event"] = str(event["event"]) % values
    return event


def _withhold_traceback(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut what Starlette and uvicorn log as a message when the start fails: a formatted traceback, text and all."""
    head, found, _ = str(event["event"]).partition("Traceback (most recent call last)")
    if found:
        event["event"] = f"{head}traceback withheld".strip()
    return event
