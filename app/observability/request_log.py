"""One log line for each request and each operation outside a request."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import structlog

from app.tokens.events import SUCCESS, TokenEvent
from app.tokens.models import SLUG_PATTERN, UUID_PATTERN

# The vault's record of an operation reaches the log as a `TokenEvent`. Where a request made just one, its facts go into
# the request's own line, so that a reveal costs one line. What is known of the request in between is kept in a context
# variable: the routes and the vault know nothing of it.

PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
CLIENT_LEFT: Final = 499  # no answer was begun; nginx's number for it
_BAD: Final = 400
_UUID: Final = re.compile(UUID_PATTERN)
_SLUG: Final = re.compile(SLUG_PATTERN)


@dataclass(slots=True)
class RequestRecord:
    """What is learned of a request while it runs.

    `event` is the first of its attempts on tokens, `events` how many there were. `outcome` and `reason` are those of
    the error that it was answered with, `trace_id` is there where it is traced.
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
    """Note the code and the detail of the error that the current request is answered with."""
    record = current_request.get()
    if record is not None:
        record.failed(outcome, reason)


class RequestLog:
    """Writes the line of each request that has ended: at DEBUG of a probe, at WARNING of what went wrong, else at INFO.

    Of all that is observed this costs a caller most, so loggers are bound once; make it after logging is configured.
    """

    def __init__(self) -> None:
        log = structlog.get_logger("app.requests").bind()
        self._of_probe = log.debug if log.is_enabled_for(logging.DEBUG) else None
        self._of_success = log.info if log.is_enabled_for(logging.INFO) else None
        self._of_failure = log.warning if log.is_enabled_for(logging.WARNING) else None

    def write(self, record: RequestRecord, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """Write one line.

        `scope` is ASGI's; of it the route's template is logged, and user and provider only where they have their form:
        anything else in a path may be a secret.
        """
        route = getattr(scope.get("route"), "path", None)
        event = record.event if record.events == 1 else None
        outcome = record.outcome or (SUCCESS if event is None else event.outcome)
        if route in PROBES:
            write = self._of_probe
        else:
            write = self._of_success if status < _BAD and outcome == SUCCESS else self._of_failure
        if write is None:
            return
        fields = {
            "request_id": record.request_id,
            "service": scope["state"].get("service"),
            "method": scope["method"],
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1_000, 2),
        }
        if event is None:
            fields |= _named_by(scope.get("path_params") or {})
        else:
            _tell_event(fields, event)
        fields["outcome"] = outcome
        if record.events > 1:
            fields["operations"] = record.events
        reason = record.reason or (None if event is None else event.detail)
        if reason is not None:
            fields["reason"] = reason
        if record.trace_id is not None:
            fields["trace_id"] = record.trace_id
        write("request", **fields)


def _tell_event(fields: dict[str, Any], event: TokenEvent) -> None:
    fields["operation"], fields["user_id"] = event.operation.value, event.user_id
    if event.token_id is not None:
        fields["provider"], fields["service_type"] = event.token_id.provider, event.token_id.service_type
    if event.encryption_method is not None:
        fields["encryption_method"] = event.encryption_method


def _named_by(path: Mapping[str, str]) -> dict[str, str]:
    """Return user and provider of the path where they have their form."""
    named = {}
    if _UUID.fullmatch(path.get("user_id", "")):
        named["user_id"] = path["user_id"].lower()
    if _SLUG.fullmatch(path.get("provider", "")):
        named["provider"] = path["provider"]
    return named


# --- What becomes of attempts on tokens, in the log.


class OperationLog:
    """`TokenObserver` as log lines: never a secret, for the event holds none.

    The only attempt of a request is told by the request's own line. Of a request that makes many, a batch, the failed
    ones have a line each; and so has every attempt that no request made, like a rewrap behind a reader's back.
    """

    def __init__(self) -> None:
        self._log = structlog.get_logger("app.operations")

    def record(self, event: TokenEvent) -> None:
        request = current_request.get()
        if request is None or request.request_id != event.caller.request_id:
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
