"""Logging setup: lines as JSON for machines or coloured for people, without data that libraries handle.

Libraries log URLs with user ids, headers with keys, and rows in exception texts. Therefore their loggers stay at
WARNING whatever LOG_LEVEL says, their messages are logged without the values, and an exception is logged as its type
and the lines of code that it passed, never as its text. See also `log_fields` (the fields that a line may have),
`log_writer` (output that never blocks) and `unhandled` (exceptions that no code catches).
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import structlog
from pydantic_core import to_json
from structlog.typing import Processor

from app.observability.log_fields import keep_allowed_fields, keep_plain_values
from app.observability.log_writer import LogWriter
from app.observability.unhandled import hook_unhandled, plain_words

_FRAMES_AT_EACH_END = 12
_FRAME_CHARACTERS = 110
_MESSAGE_CHARACTERS = 500
_FIRST_ON_THE_CONSOLE = (
    "status",
    "method",
    "route",
    "operation",
    "outcome",
    "reason",
    "provider",
    "service",
    "duration_ms",
)
_LAST_ON_THE_CONSOLE = ("user_id", "request_id", "trace_id")
_CLOCK_CHARACTERS = len("18:04:05.123")
_REQUEST_ID_CHARACTERS = 8  # the answer's X-Request-ID begins with them; JSON has the whole
_UVICORN = "uvicorn.error"  # lifecycle messages; the access log would print query strings
_ASYNCIO = "asyncio"  # its messages contain reprs of tasks and callbacks


def configure_command_logging() -> None:
    """Log only unexpected failures, to standard error for people; a command prints everything else itself."""
    configure_logging(level="CRITICAL", log_format="console", stream=sys.__stderr__)


def configure_logging(*, level: str, log_format: str, stream: TextIO | None = sys.__stdout__) -> None:
    """Send structlog's and the standard library's lines to the descriptor of `stream`, in one format."""
    writer = _writer(stream)
    logging.raiseExceptions = False  # it would print a line that cannot be formatted, with its arguments
    shared: list[Processor] = [
        _add_level_and_time,
        _name_exception,
        keep_allowed_fields,
        keep_plain_values,
    ]
    renderer: Processor = _render_json
    if log_format == "console":
        shared.append(_arrange_for_people)
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream is not None and stream.isatty(), sort_keys=False, pad_event_to=0, pad_level=False
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=lambda *_: _Lines(writer),
        cache_logger_on_first_use=True,
    )
    unfiltered = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
    )
    writer.format_dropped = lambda count: f"{unfiltered.warning('log_resumed', log_lines_dropped=count)}\n"
    handler = logging.StreamHandler(cast("TextIO", writer))
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
    hook_unhandled()


def end_log() -> None:
    """Wait until every line is written, and wait for each later line: the process may end after any of them."""
    for writer in _writers():
        writer.finish()


def _writer(stream: TextIO | None) -> LogWriter:
    """Return the writer of this stream: one for each, so that lines keep their order if logging is configured again."""
    # without a stream, its descriptor's number may belong to another file
    descriptor = None if stream is None else stream.fileno()
    for writer in _writers():
        if writer.descriptor == descriptor:
            writer.resume()
            return writer
    return LogWriter(descriptor=descriptor)


def _writers() -> Iterator[LogWriter]:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, LogWriter):
            yield handler.stream


class _Lines:
    """Logger that takes rendered lines from structlog; structlog's own holds a lock that is not reentrant."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        self._writer.write(line + "\n")

    debug = info = warning = error = critical = msg


def _render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    try:
        return to_json(event, inf_nan_mode="null").decode()  # several times faster than the standard library's
    except ValueError:  # a lone surrogate, which UTF-8 cannot encode
        return json.dumps(event)


def _arrange_for_people(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put what a person looks for first, and shorten the time and the request's id; a structlog processor."""
    moment = str(event.get("timestamp", ""))
    if "T" in moment:
        event["timestamp"] = moment.partition("T")[2][:_CLOCK_CHARACTERS]
    if isinstance(event.get("request_id"), str):
        event["request_id"] = event["request_id"][:_REQUEST_ID_CHARACTERS]
    first = {name: event[name] for name in _FIRST_ON_THE_CONSOLE if name in event}
    last = {name: event[name] for name in _LAST_ON_THE_CONSOLE if name in event}
    return first | {name: value for name, value in event.items() if name not in first and name not in last} | last


def _add_level_and_time(_logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add what structlog's processors `add_log_level` and `TimeStamper` would, in one step."""
    event["level"] = method
    event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return event


def _name_exception(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace an exception by its type and its stack frames."""
    info = event.pop("exc_info", None)
    error = info[1] if isinstance(info, tuple) else info if isinstance(info, BaseException) else None
    if info is True:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = type(error).__qualname__
        event["frames"] = _frames(error)
    return event


def _frames(error: BaseException) -> list[str]:
    """Return the stack frames from the outermost inwards; of a deep stack, both ends.

    The bound keeps a line within PIPE_BUF, so that a pipe does not mix it with the lines of other processes.
    """
    frames = [
        f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}"[-_FRAME_CHARACTERS:]
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    left_out = len(frames) - 2 * _FRAMES_AT_EACH_END
    if left_out > 0:
        frames[_FRAMES_AT_EACH_END:-_FRAMES_AT_EACH_END] = [f"({left_out} more)"]
    return frames


def _withhold_values(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep a library's message template without its values; only uvicorn's messages are formatted.

    A message without arguments may contain formatted values, mostly after its first line, which alone is kept. A
    message that is not a string, such as an exception, is logged as its type.
    """
    values = event.pop("positional_args", None)
    name, message = event["_record"].name, event["_record"].msg
    if isinstance(message, OSError) and name == _UVICORN:
        event["event"] = str(message)  # names the address in use
    elif not isinstance(message, str):
        event["event"] = type(message).__qualname__
    elif values and name == _UVICORN:
        event["event"] = message % values
    elif not values:
        line = message.partition("\n")[0]
        event["event"] = (plain_words(line) if name == _ASYNCIO else line)[:_MESSAGE_CHARACTERS]
    return event


def _withhold_traceback(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut the formatted traceback that Starlette and uvicorn log as a message when the start fails."""
    head, found, _ = str(event["event"]).partition("Traceback (most recent call last)")
    if found:
        event["event"] = f"{head}traceback withheld".strip()
    return event
