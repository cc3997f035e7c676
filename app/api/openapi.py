"""The parts of the OpenAPI document that FastAPI cannot see: request bodies, and what each route may answer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app import errors
from app.api.authentication import PURPOSE_HEADER, PURPOSE_PATTERN
from app.api.problems import MEDIA_TYPE, STATUS, Problem
from app.api.schemas import EXAMPLE_USER_ID, BatchGetRequest, PatchTokenRequest, StoreTokenRequest
from app.tokens.models import DEFAULT_SERVICE_TYPE, SLUG_PATTERN, UUID_PATTERN

_REF = "#/components/schemas/{model}"
_REQUEST_BODIES: tuple[type[BaseModel], ...] = (StoreTokenRequest, PatchTokenRequest, BatchGetRequest)

STORE = (errors.StoreUnavailable, errors.StoreTimeout, errors.StoreMisconfigured)
SEAL = (errors.KeyUnavailable, errors.KeyDenied)
OPEN = (*SEAL, errors.IntegrityError, errors.MalformedCiphertext, errors.ContextMismatch)
BODY = (errors.MalformedBody, errors.BodyTooLarge)
_EVERY_ROUTE: tuple[type[errors.VaultError], ...] = (
    errors.Unauthenticated,
    errors.Forbidden,
    errors.AuditUnavailable,
    errors.RateLimited,
    errors.Overloaded,
    errors.InvalidRequest,
    errors.InternalError,
)

_SLUG = {"type": "string", "pattern": SLUG_PATTERN}
TOKEN_ID: tuple[dict[str, Any], ...] = (
    {
        "name": "user_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "format": "uuid", "pattern": UUID_PATTERN},
        "example": EXAMPLE_USER_ID,
    },
    {"name": "provider", "in": "path", "required": True, "schema": _SLUG, "example": "canvas"},
    {
        "name": "service_type",
        "in": "query",
        "schema": {**_SLUG, "default": DEFAULT_SERVICE_TYPE},
        "description": "Only for providers with several services, like `calendar`.",
    },
)
INCLUDE = {
    "name": "include",
    "in": "query",
    "schema": {"type": "string", "enum": ["refresh_token"]},
    "description": "Also reveal the refresh token; needs `tokens:reveal_refresh`.",
}
_ENTITY_TAG = r'(W/)?"[!#-~]*"'
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "schema": {
        "anyOf": [
            {"type": "string", "enum": ["*"]},
            {"type": "string", "pattern": f"^{_ENTITY_TAG}(, *{_ENTITY_TAG})*$"},
        ],
        "examples": ['"3"'],
    },
    "description": "Write only onto this version. `*`: only onto an existing token.",
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string", "enum": ["*"]},
    "description": "Only create.",
}
PURPOSE = {
    "name": PURPOSE_HEADER,
    "in": "header",
    "schema": {"type": "string", "pattern": PURPOSE_PATTERN, "examples": ["sync.courses"]},
    "description": "Why the caller makes this call, for the audit trail. Never a secret.",
}
_ETAG = {"ETag": {"description": "The token's version, quoted.", "schema": {"type": "string", "examples": ['"3"']}}}


def answers(*possible: type[errors.VaultError], etag: bool = False, created: bool = False) -> dict[int | str, Any]:
    """Return a route's `responses`: its problems by status, and its ETag."""
    by_status: dict[int, list[type[errors.VaultError]]] = defaultdict(list)
    kinds: tuple[type[errors.VaultError], ...] = (*_EVERY_ROUTE, *possible)
    for error in dict.fromkeys(kinds):
        by_status[STATUS[error]].append(error)
    responses: dict[int | str, Any] = {status: _problem(kinds) for status, kinds in sorted(by_status.items())}
    if etag:
        responses[200] = {"headers": _ETAG}
    if created:
        responses[201] = {
            "description": "Created",
            "headers": _ETAG,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model="Token")}}},
        }
    return responses


def extra(*parameters: dict[str, Any], body: type[BaseModel] | None = None) -> dict[str, Any]:
    """Return a route's `openapi_extra`: parameters and a body that dependencies read by themselves."""
    described: dict[str, Any] = {"parameters": list(parameters)} if parameters else {}
    if body is not None:
        schema = {"$ref": _REF.format(model=body.__name__)}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
        )
        _, definitions = models_json_schema([(model, "validation") for model in _REQUEST_BODIES], ref_template=_REF)
        schema["components"]["schemas"] |= definitions["$defs"]
        for path, methods in schema["paths"].items():
            if path.startswith("/v1/"):  # authentication reads it, on every route that has any
                for operation in methods.values():
                    operation.setdefault("parameters", []).append(PURPOSE)
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


def document_route(app: FastAPI) -> Route:
    """Return the route of the document, which is written down once: anybody may ask for it, so it has to be cheap."""
    written: list[bytes] = []

    async def openapi(_: Request) -> Response:
        if not written:
            written.append(bytes(JSONResponse(document(app)).body))
        return Response(written[0], media_type="application/json")

    return Route("/openapi.json", openapi, include_in_schema=False)


def _problem(kinds: list[type[errors.VaultError]]) -> dict[str, Any]:
    codes = [kind.code for kind in kinds]
    answer: dict[str, Any] = {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": _REF.format(model=Problem.__name__)},
                "examples": {kind.code: {"value": _example(kind)} for kind in kinds},
            }
        },
    }
    if any(kind.retryable for kind in kinds):
        answer["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return answer


def _example(kind: type[errors.VaultError]) -> dict[str, Any]:
    return {
        "type": f"urn:pulseplan:token-vault:{kind.code}",
        "title": kind.code.replace("_", " ").capitalize(),
        "status": STATUS[kind],
        "detail": (kind.__doc__ or "").strip().partition("\n")[0],
        "code": kind.code,
        "retryable": kind.retryable,
        "request_id": "0b5c2f0e9d7c4d0c8e8f6f3d9a7b1c2e",
    }
