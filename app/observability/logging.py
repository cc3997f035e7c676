"""Log lines as JSON for machines or in colour for people, with nothing of third parties in them.

Libraries log what they handle: URLs with user ids, headers with keys, rows in exception texts. So their loggers are
held at WARNING whatever LOG_LEVEL says, what they say is logged without the values that they put into it, and an
exception is logged as its type and the lines of code it passed, never as its text. `app.observability.log_fields` says
which fields a line may have, `app.observability.log_output` how lines get out without anybody waiting for them, and
`app.observability.unhandled` what becomes of errors that nobody catches.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from typing import Any, TextIO, cast

import structlog
from pydantic_core import to_json
from structlog.typing import Processor

from app.observability.log_fields import keep_allowed_fields, keep_plain_values
from app.observability.log_output import LogOutput
from app.observability.unhandled import hook_unhandled, plain_words

_FRAMES_AT_EACH_END = 12
_FRAME_CHARACTERS = 110
_MESSAGE_CHARACTERS = 500
_UVICORN = "uvicorn.error"  # its lifecycle messages; its access log would print query strings
_ASYNCIO = "asyncio"  # puts the reprs of tasks and callbacks into its messages


def configure_command_logging() -> None:
    """Log what nobody thought of, and for people: a command prints whatever else there is to say."""
    configure_logging(level="CRITICAL", log_format="console", stream=sys.__stderr__)


def configure_logging(*, level: str, log_format: str, stream: TextIO | None = sys.__stdout__) -> None:
    """Send our own lines and the standard library's to what this stream writes to, in one format."""
    output = _output(stream)
    logging.raiseExceptions = False  # it would print a line that cannot be formatted, arguments and all
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_exception,
        keep_allowed_fields,
        keep_plain_values,
    ]
    renderer: Processor = _render_json
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=stream is not None and stream.isatty())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=lambda *_: _Lines(output),
        cache_logger_on_first_use=True,
    )
    resumed = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
    )
    output.tell_dropped = lambda count: f"{resumed.warning('log_resumed', log_lines_dropped=count)}\n"
    handler = logging.StreamHandler(cast("TextIO", output))
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
    """Have every line written, and wait for those that follow: the process may end after any of them."""
    for output in _outputs():
        output.end()


def _output(stream: TextIO | None) -> LogOutput:
    """Return the one output to this stream, so that lines keep their order however often logging is configured."""
    # where there is no stream, something else may have its number
    descriptor = None if stream is None else stream.fileno()
    for output in _outputs():
        if output.descriptor == descriptor:
            output.go_on()
            return output
    return LogOutput(descriptor=descriptor)


def _outputs() -> Iterator[LogOutput]:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, LogOutput):
            yield handler.stream


class _Lines:
    """Takes finished lines from structlog, whose own logger for files has a lock that is not reentrant."""

    def __init__(self, output: LogOutput) -> None:
        self._output = output

    def msg(self, line: str) -> None:
        self._output.write(line + "\n")

    debug = info = warning = error = critical = msg


def _render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    try:
        return to_json(event, inf_nan_mode="null").decode()  # several times faster than the standard library's
    except ValueError:  # a lone surrogate, which is no UTF-8
        return json.dumps(event)


def _name_exception(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace an exception by its type and the code that it passed through."""
    info = event.pop("exc_info", None)
    error = info[1] if isinstance(info, tuple) else info if isinstance(info, BaseException) else None
    if info is True:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = type(error).__qualname__
        event["frames"] = _frames(error)
    return event


def _frames(error: BaseException) -> list[str]:
    """Return where the error passed, from the outside in; of a deep one the two ends.

    A line that is longer than a pipe takes at once could be mixed with others' in it.
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
    """Leave a library's message as its programmer wrote it, without the values; uvicorn's alone becomes whole.

    A message without values may have them in it already, mostly after its first line. One that is no text, such as an
    exception, is named by its type.
    """
    values = event.pop("positional_args", None)
    name, message = event["_record"].name, event["_record"].msg
    if isinstance(message, OSError) and name == _UVICORN:
        event["event"] = str(message)  # the address that is taken
    elif not isinstance(message, str):
        event["event"] = type(message).__qualname__
    elif values and name == _UVICORN:
        event["event"] = message % values
    elif not values:
        line = message.partition("\n")[0]
        event["event"] = (plain_words(line) if name == _ASYNCIO else line)[:_MESSAGE_CHARACTERS]
    return event


def _withhold_traceback(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut what Starlette and uvicorn log as a message when the start fails: a formatted traceback, text and all."""
    head, found, _ = str(event["event"]).partition("Traceback (most recent call last)")
    if found:
        event["event"] = f"{head}traceback withheld".strip()
    return event
