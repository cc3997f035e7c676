"""Direct routes: what they call, and what they refuse."""

from __future__ import annotations

from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, Header, Request
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response

from app.api.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)


async def _first(request: Request) -> str:
    request.state.called = ["first"]
    return "1"


async def _second(request: Request) -> str:
    request.state.called.append("second")
    return "2"


async def _user(request: Request) -> str:
    return str(request.path_params["user"])


@router.get("/{user}/things")
async def _things(
    user: Annotated[str, Depends(_user)],
    one: Annotated[str, Depends(_first)],
    two: Annotated[str, Depends(_second)],
    request: Request,
) -> Response:
    return PlainTextResponse(f"{user} {one} {two} {request.state.called}")


async def _with_header(request: Request, agent: Annotated[str, Header()]) -> str:
    return f"{request.url}{agent}"


async def _nested(request: Request, one: Annotated[str, Depends(_first)]) -> str:
    return f"{request.url}{one}"


async def test_dependencies_are_called_in_order_with_the_request() -> None:
    transport = httpx.ASGITransport(app=Starlette(routes=router.routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://vault") as client:
        answer = await client.get("/alice/things")
    assert answer.text == "alice 1 2 ['first', 'second']"


def test_parameters_that_fastapi_would_validate_are_refused() -> None:
    async def query(limit: int) -> Response:
        return PlainTextResponse(str(limit))

    async def header(value: Annotated[str, Depends(_with_header)]) -> Response:
        return PlainTextResponse(value)

    async def nested(value: Annotated[str, Depends(_nested)]) -> Response:
        return PlainTextResponse(value)

    async def path(user: str) -> Response:
        return PlainTextResponse(user)

    for endpoint in (query, header, nested, path):
        with pytest.raises(TypeError, match="must"):
            DirectRoute("/{user}", endpoint)
