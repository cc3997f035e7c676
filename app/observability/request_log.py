"""One log line for each request, and one for each operation outside a request.

A request that makes a single operation logs the operation's facts in its own line, so a reveal costs one line. A
context variable carries the record of the request, so routes and vault know nothing of the log.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import structlog

from app.tokens.events import SUCCESS, Operation, TokenEvent
from app.tokens.models import SLUG_PATTERN, UUID_PATTERN

PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
CLIENT_LEFT: Final = 499  # nginx's status for a caller that left before an answer began
_FIRST_ERROR_STATUS: Final = 400
_UUID: Final = re.compile(UUID_PATTERN)
_SLUG: Final = re.compile(SLUG_PATTERN)


@dataclass(slots=True)
class RequestRecord:
    """Facts about a request, collected while it runs.

    `event` is its first operation on a token and `events` the number of operations. `outcome` and `reason` are the code
    and detail of the error that it is answered with. `trace_id` is set if the request is traced.
    """

    request_id: str
    event: TokenEvent | None = None
    events: int = 0
    outcome: str | None = None
    reason: str | None = None
    trace_id: str | None = None

    def failed(self, outcome: str, reason: str | None) -> None:
        self.outcome, self.reason = outcome, reason


current_request: Final[ContextVar[RequestRecord | None]] = ContextVar("current_request", default=None)


def note_failure(outcome: str, reason: str | None) -> None:
    """Record the code and detail of the current request's error, for its log line."""
    record = current_request.get()
    if record is not None:
        record.failed(outcome, reason)


class RequestLog:
    """Writes the line of a finished request: a probe at DEBUG, a failure at WARNING, any other at INFO.

    This line is the largest cost of observing a request, so it passes structlog's processors without its loggers.
    Configure logging first.
    """

    def __init__(self) -> None:
        enabled = structlog.get_logger("app.requests").bind().is_enabled_for
        self._probe = "debug" if enabled(logging.DEBUG) else None
        self._success = "info" if enabled(logging.INFO) else None
        self._failure = "warning" if enabled(logging.WARNING) else None
        configured = structlog.get_config()
        self._processors, self._lines = configured["processors"], configured["logger_factory"]()

    def write(self, record: RequestRecord, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """Write one line.

        Of the path in the ASGI `scope`, only the route's template is logged, and the user and provider if they are well
        formed: any other part of a path may be a secret.
        """
        route = getattr(scope.get("route"), "path", None)
        event = record.event if record.events == 1 else None
        outcome = record.outcome or (SUCCESS if event is None else event.outcome)
        if route in PROBES:
            level = self._probe
        else:
            level = self._success if status < _FIRST_ERROR_STATUS and outcome == SUCCESS else self._failure
        if level is None:
            return
        line: Any = {
            "request_id": record.request_id,
            "service": scope["state"].get("service"),
            "method": scope["method"],
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1_000, 2),
        }
        line |= _path_fields(scope.get("path_params") or {}) if event is None else _event_fields(event)
        line["outcome"] = outcome
        if record.events > 1:
            line["operations"] = record.events
        reason = record.reason or (None if event is None else event.detail)
        if reason is not None:
            line["reason"] = reason
        if record.trace_id is not None:
            line["trace_id"] = record.trace_id
        line["event"] = "request"
        for process in self._processors:  # as structlog's loggers do, which copy the fields twice before
            line = process(self._lines, level, line)
        self._lines.msg(line)


def _event_fields(event: TokenEvent) -> dict[str, Any]:
    fields: dict[str, Any] = {"operation": event.operation.value, "user_id": event.user_id}
    if event.token_id is not None:
        fields["provider"], fields["service_type"] = event.token_id.provider, event.token_id.service_type
    if event.encryption_method is not None:
        fields["encryption_method"] = event.encryption_method
    return fields


def _path_fields(path: Mapping[str, str]) -> dict[str, Any]:
    """Return the user and the provider in the path, each if it is well formed."""
    fields = {}
    if _UUID.fullmatch(path.get("user_id", "")):
        fields["user_id"] = path["user_id"].lower()
    if _SLUG.fullmatch(path.get("provider", "")):
        fields["provider"] = path["provider"]
    return fields


class OperationLog:
    """`TokenObserver` that logs operations; an event holds no secret.

    The only operation of a request is in the request's line. Of a request with several, a batch, each failed one has a
    line. So has every operation outside a request, such as a rewrap on read, and every refresh: several requests may
    share one.
    """

    def __init__(self) -> None:
        self._log = structlog.get_logger("app.operations")

    def record(self, event: TokenEvent) -> None:
        request = current_request.get()
        is_of_request = request is not None and request.request_id == event.caller.request_id
        if request is None or not is_of_request or event.operation is Operation.REFRESH:
            self._write(event)
            return
        request.events += 1
        if request.events == 1:
            request.event = event
            return
        first = request.event
        if request.events == 2 and first is not None and first.outcome != SUCCESS:  # noqa: PLR2004  now it is a batch
            self._write(first)
        if event.outcome != SUCCESS:
            self._write(event)

    def record_many(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            self.record(event)

    def _write(self, event: TokenEvent) -> None:
        level = self._log.info if event.outcome == SUCCESS else self._log.warning
        level(
            "token_operation",
            operation=event.operation.value,
            user_id=event.user_id,
            provider=event.token_id.provider if event.token_id else None,
            service_type=event.token_id.service_type if event.token_id else None,
            encryption_method=event.encryption_method,
            service=event.caller.service,
            outcome=event.outcome,
            reason=event.detail,
            request_id=event.caller.request_id,
        )
