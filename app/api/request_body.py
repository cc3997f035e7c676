"""Request bodies: read within limits of size and time, parse as strict JSON (RFC 8259, RFC 7493), validate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.problems import invalid_request
from app.errors import BodyTooLarge, MalformedBody
from app.strict_json import (
    DuplicateMemberError,
    StrictJsonError,
    finite,
    refuse_constant,
    require_depth,
    unique_members,
)

MAXIMUM_BODY_BYTES: Final = 64 * 1024
MAXIMUM_BODY_SECONDS: Final = 10
MAXIMUM_DEPTH: Final = 32
JSON: Final = "application/json"
Model = TypeVar("Model", bound=BaseModel)
Other = TypeVar("Other", bound=BaseModel)


def strict_body(
    model: type[Model], others: Mapping[str, type[Other]] | None = None
) -> Callable[[Request], Awaitable[Model | Other]]:
    """Return a dependency that gives the body as `model`; it raises `MalformedBody`, `BodyTooLarge`, `InvalidRequest`.

    `others` are the models of media types other than `application/json`. FastAPI reads its own body parameters before
    any dependency runs, so before authentication.
    """
    models: dict[str, type[Model | Other]] = {JSON: model, **(others or {})}

    async def parse(request: Request) -> Model | Other:
        given = models[require_media_type(request, *models)]
        value = parse_strict_json(await read_body(request))
        try:
            return given.model_validate(value)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            raise invalid_request(problems, given) from None

    return parse


def require_media_type(request: Request, *known: str) -> str:
    """Return the body's media type; raises `MalformedBody` unless it is a known one in UTF-8, not compressed."""
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type not in known or charset not in {"", "utf-8"}:
        raise MalformedBody(f"Content-Type must be {' or '.join(known)} in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MalformedBody("Content-Encoding is not supported")
    return media_type


async def read_body(request: Request) -> bytes:
    """Read the body; the size limit holds whether Content-Length is absent, right or wrong."""
    content_length = request.headers.get("content-length", "0")
    if content_length.isdecimal() and int(content_length) > MAXIMUM_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(MAXIMUM_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAXIMUM_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise MalformedBody(f"the body did not arrive within {MAXIMUM_BODY_SECONDS} seconds") from None
    except ClientDisconnect:
        raise MalformedBody("the caller disconnected before the end of the body") from None
    return bytes(body)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {MAXIMUM_BODY_BYTES // 1024} KiB")


def parse_strict_json(body: bytes) -> Any:  # noqa: ANN401  JSON
    """Return the value, or raise `MalformedBody`.

    Refuses bytes that are not UTF-8; duplicate keys, because other parsers keep only one of them; `NaN`, infinities
    and numbers beyond a double; lone surrogates and NUL, which PostgreSQL cannot store; and more than 32 levels of
    nesting. A float without a fraction becomes an `int`, so that every store returns the same number.
    """
    text = ""
    try:
        text = body.decode("utf-8")
        value = _STRICT_JSON.decode(text)
        require_depth(value, levels=MAXIMUM_DEPTH)
    except UnicodeDecodeError:
        _refuse("the body is not UTF-8")
    except RecursionError:
        _refuse(f"the body has more than {MAXIMUM_DEPTH} levels of nesting")
    except DuplicateMemberError:
        _refuse("an object in the body has a duplicate key")
    except StrictJsonError as error:
        _refuse(f"the body {error}")
    except ValueError:  # its text quotes the body
        _refuse("the body is not valid JSON")
    if "\\u" in text:  # only an escape can spell them: UTF-8 has no surrogates, and JSON no bare NUL in a string
        _require_storable(value)
    return value


def _number(text: str) -> int | float:
    number = finite(text)
    return int(number) if number.is_integer() else number


# built once: `json.loads` with options builds one for each call
_STRICT_JSON: Final = json.JSONDecoder(
    object_pairs_hook=unique_members, parse_constant=refuse_constant, parse_float=_number
)


def _require_storable(value: object) -> None:
    if isinstance(value, str):
        _require_storable_text(value)
    elif isinstance(value, dict):
        for key, member in value.items():
            _require_storable_text(key)
            _require_storable(member)
    elif isinstance(value, list):
        for item in value:
            _require_storable(item)


def _require_storable_text(text: str) -> None:
    if "\0" in text:
        _refuse("the body contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse("the body contains a lone surrogate")


def _refuse(detail: str) -> NoReturn:
    raise MalformedBody(detail) from None
