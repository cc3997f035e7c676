"""One log line for every operation on a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from app.tokens.events import SUCCESS

if TYPE_CHECKING:
    from app.tokens.events import TokenEvent


class OperationLog:
    """`TokenObserver` as log lines: never a secret, for the event holds none."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("app.operations")

    def record(self, event: TokenEvent) -> None:
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
