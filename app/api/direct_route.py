"""Routes that call their dependencies directly, and the router that calls the routes.

FastAPI resolves the graph of dependencies again for each request, and its router and Starlette's handling of errors
serve mounts, redirects, WebSockets and telemetry.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, cast

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import VaultError


class DirectRoute(APIRoute):
    """`APIRoute` whose endpoint takes the request, and dependencies that take the request alone.

    Dependencies are called in the order of the parameters. The endpoint returns the response. The OpenAPI document is
    FastAPI's; the endpoint's name is the `operationId`, after which generators name a function.
    docs/decisions/direct-routes.md has the figures.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  FastAPI's
        super().__init__(*arguments, **{**options, "response_model": None, "responses": None})
        self.operation_id = self.operation_id or self.name
        self.app = _application(self.dependant)
        self._methods = frozenset(self.methods or ())
        self._described = arguments, {**options, "operation_id": self.operation_id}

    def described(self) -> APIRoute:
        """Return FastAPI's route with the models of the responses, for the document.

        The document alone needs them, and FastAPI builds a validator for each.
        """
        arguments, options = self._described
        return APIRoute(*arguments, **options)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match path and method. FastAPI's way also looks for included routers and converts path parameters."""
        found = self.path_regex.match(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            return Match.NONE, {}
        matched = {"endpoint": self.endpoint, "path_params": found.groupdict(), "route": self}
        return (Match.FULL if scope["method"] in self._methods else Match.PARTIAL), matched

    def error_response(self, _request: Request, _error: VaultError) -> Response | None:
        """Return the answer to an error of this route; `None`: a problem document."""
        return None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self._methods:
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)
        await self.app(scope, receive, send)


ErrorHandler = Callable[[Request, Any], Awaitable[Response]]


class DirectRouter:
    """ASGI application that passes a request to the first route of `router` that matches path and method.

    An error of a class in `handlers`, which is the error of a path or method without a route too, is answered by that
    class's handler. Any other error is raised.
    """

    def __init__(self, router: Router, *, handlers: Mapping[type[Exception], ErrorHandler]) -> None:
        self._router = router
        self._handlers = handlers
        self._handled = tuple(handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router.app(scope, receive, send)
            return
        try:
            await self._route_of(scope).handle(scope, receive, send)
        except self._handled as error:
            handler = next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)
            response = await handler(Request(scope, receive, send), error)
            await response(scope, receive, send)
            error.__traceback__ = None  # an error that is raised again would keep the frames of each request

    def _route_of(self, scope: Scope) -> BaseRoute:
        partial: tuple[BaseRoute, Scope] | None = None
        for route in self._router.routes:
            match, matched = route.matches(scope)
            if match is Match.FULL:
                scope.update(matched)
                return route
            if match is Match.PARTIAL and partial is None:
                partial = route, matched
        if partial is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        route, matched = partial
        scope.update(matched)
        return route


def _application(endpoint: Dependant) -> ASGIApp:
    call = cast("Callable[..., Awaitable[Response]]", endpoint.call)
    dependencies = [(cast("str", one.name), _dependency(one)) for one in endpoint.dependencies]
    request_name = endpoint.request_param_name
    _refuse_parameters(endpoint)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        arguments: dict[str, Any] = {} if request_name is None else {request_name: request}
        for name, dependency in dependencies:
            arguments[name] = await dependency(request)
        response = await call(**arguments)
        await response(scope, receive, send)

    return application


def _dependency(dependant: Dependant) -> Callable[[Request], Awaitable[Any]]:
    if dependant.dependencies or dependant.request_param_name is None:
        raise TypeError(f"{dependant.call} must take the request alone")
    _refuse_parameters(dependant)
    return cast("Callable[[Request], Awaitable[Any]]", dependant.call)


def _refuse_parameters(dependant: Dependant) -> None:
    """Raise `TypeError` for parameters that FastAPI would read, convert and validate."""
    in_head = dependant.path_params or dependant.query_params or dependant.header_params or dependant.cookie_params
    if in_head or dependant.body_params:
        raise TypeError(f"{dependant.call} must read path, query, headers and body by itself")
