"""Read a request body within its limits and parse it as strict JSON (RFC 8259, RFC 7493)."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.problems import invalid_request
from app.errors import BodyTooLarge, MalformedBody

# --- JSON as RFC 8259 and I-JSON (RFC 7493) mean it, from a caller who may be hostile.

MAXIMUM_DEPTH = 32


def parse_strict_json(body: bytes) -> Any:  # noqa: ANN401  JSON
    """Return the value, or raise `MalformedBody`.

    Refused: anything but UTF-8; duplicate keys, of which other parsers silently keep one; `NaN` and numbers beyond a
    double; lone surrogates and NUL, which PostgreSQL cannot store; more than 32 levels. A number without a fraction
    comes back as `int`, so that every store returns it the same.
    """
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_number
        )
    except UnicodeDecodeError:
        _refuse("the body is not UTF-8")
    except RecursionError:
        _refuse(f"the body nests deeper than {MAXIMUM_DEPTH} levels")
    except ValueError:  # its text quotes the body
        _refuse("the body is not valid JSON")
    _require_storable(value, MAXIMUM_DEPTH)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _refuse("an object of the body has the same key twice")
    return members


def _refuse_constant(_: str) -> NoReturn:
    _refuse("the body holds NaN or Infinity, which are not JSON")


def _number(text: str) -> int | float:
    number = float(text)
    if not math.isfinite(number):
        _refuse("the body holds a number that no double can hold")
    return int(number) if number.is_integer() else number


def _require_storable(value: object, levels: int) -> None:
    if isinstance(value, str):
        _require_storable_text(value)
    elif isinstance(value, dict | list):
        if levels == 0:
            _refuse(f"the body nests deeper than {MAXIMUM_DEPTH} levels")
        if isinstance(value, dict):
            for key, member in value.items():
                _require_storable_text(key)
                _require_storable(member, levels - 1)
        else:
            for item in value:
                _require_storable(item, levels - 1)


def _require_storable_text(text: str) -> None:
    if "\0" in text:
        _refuse("the body holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse("the body holds a lone surrogate")


def _refuse(message: str) -> NoReturn:
    raise MalformedBody(message) from None


# --- A request's body, read within its limit and parsed strictly.
# It is a dependency and not a FastAPI body parameter: those are read before any other dependency runs, so a caller
# without a key could make the vault read and parse.

MAXIMUM_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10
Model = TypeVar("Model", bound=BaseModel)


def strict_body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """Return a dependency that gives the body as `model`."""

    async def parse(request: Request) -> Model:
        _require_json(request)
        value = parse_strict_json(await _read(request))
        try:
            return model.model_validate(value)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            raise invalid_request(problems) from None

    return parse


def _require_json(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in {"", "utf-8"}:
        raise MalformedBody("Content-Type must be application/json in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MalformedBody("Content-Encoding is not supported")


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
        raise MalformedBody(f"the body did not arrive within {BODY_SECONDS} seconds") from None
    except ClientDisconnect:
        raise MalformedBody("the caller went away in the middle of the body") from None
    return bytes(body)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {MAXIMUM_BODY_BYTES // 1024} KiB")
