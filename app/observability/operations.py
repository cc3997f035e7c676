"""What becomes of attempts on tokens, in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from app.observability.request_log import current_request
from app.tokens.events import SUCCESS

if TYPE_CHECKING:
    from app.tokens.events import TokenEvent


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
