"""The fields that a log line may have.

A field that is not listed is left out of the line, and the line names it. Before adding one, make sure that it can hold
no secret.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any, Final

COMMON_FIELDS: Final = frozenset({"event", "level", "timestamp", "logger", "exception", "frames", "dropped_fields"})
REQUEST_FIELDS: Final = frozenset(
    {
        "duration_ms",
        "encryption_method",
        "method",
        "operation",
        "operations",
        "outcome",
        "provider",
        "reason",
        "request_id",
        "route",
        "service",
        "service_type",
        "status",
        "trace_id",
        "user_id",
    }
)
PROCESS_FIELDS: Final = frozenset(
    {
        "check",
        "code",
        "expires_at",
        "keys",
        "log_lines_dropped",
        "overtaken",
        "primary",
        "ready",
        "refreshed",
        "remaining",
        "rewrapped",
        "seconds",
        "state",
        "stopped",
        "store",
        "unreadable",
    }
)
ALLOWED: Final = COMMON_FIELDS | REQUEST_FIELDS | PROCESS_FIELDS
_STDLIB_BRIDGE: Final = frozenset({"_record", "_from_structlog"})  # structlog removes them
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


def keep_plain_values(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace each value that is not text, a number, a bool or `None` by the name of its type; a structlog processor.

    So too in lists. Otherwise a renderer could print the fields of an object whose `repr` hides them.
    """
    for name, value in event.items():
        if type(value) not in _PLAIN:
            event[name] = _plain(value)
    return event


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [one if type(one) in _PLAIN else type(one).__qualname__ for one in value]
    return type(value).__qualname__


def keep_allowed_fields(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop fields that are not allowed, and name them; a structlog processor."""
    if event.keys() <= ALLOWED:
        return event
    dropped = event.keys() - ALLOWED - _STDLIB_BRIDGE
    for name in dropped:
        del event[name]
    if dropped:
        # a name of another form may be data
        event["dropped_fields"] = sorted({name if _NAME.fullmatch(name) else "unnameable" for name in dropped})
    return event
