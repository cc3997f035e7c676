"""What every request gets: an id, the headers that all answers carry, and an answer even to a defect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from app.api.problems import problem_response
from app.errors import InternalError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = structlog.get_logger("app.requests")
_COMMON = ((b"x-content-type-options", b"nosniff"),)
_NEVER_STORED = (*_COMMON, (b"cache-control", b"no-store"))
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RequestContext:
    """Outermost ASGI middleware.

    Starlette's own last resort logs the text of whatever was raised; this one logs where it came from and answers
    with the problem `internal`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        common = _NEVER_STORED if scope["path"].startswith("/v1") else _COMMON
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # appended: no route of ours sets any of these
                message["headers"] = [*message["headers"], *common, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  the last resort
            _log.error("internal_error", request_id=request_id, exc_info=error)
            if not started:
                failure = InternalError("the vault made a mistake; its log has the request id")
                await problem_response(failure, request_id)(scope, receive, send_with_headers)


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _SANE_REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return uuid4().hex
