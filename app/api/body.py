"""A request's body, read within its limit and parsed strictly.

It is a dependency and not a FastAPI body parameter: those are read before any other dependency runs, so a caller
without a key could make the vault read and parse.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.strict_json import parse_strict_json
from app.api.validation import invalid_request
from app.errors import BodyTooLarge, MalformedBody

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAXIMUM_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10
Model = TypeVar("Model", bound=BaseModel)


def strict_body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """Return a dependency that gives the body as `model`."""

    async def parse(request: Request) -> Model:
        _demand_json(request)
        value = parse_strict_json(await _read(request))
        try:
            return model.model_validate(value)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            raise invalid_request(problems) from None

    return parse


def _demand_json(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in {"", "utf-8"}:
        message = "Content-Type must be application/json in UTF-8"
        raise MalformedBody(message)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        message = "Content-Encoding is not supported"
        raise MalformedBody(message)


async def _read(request: Request) -> bytes:
    """Read at most 64 KiB, whatever Content-Length says or does not say."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAXIMUM_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAXIMUM_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        message = f"the body did not arrive within {BODY_SECONDS} seconds"
        raise MalformedBody(message) from None
    except ClientDisconnect:
        message = "the caller went away in the middle of the body"
        raise MalformedBody(message) from None
    return bytes(body)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {MAXIMUM_BODY_BYTES // 1024} KiB")
