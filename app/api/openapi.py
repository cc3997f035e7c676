"""The OpenAPI document, with the parts that FastAPI cannot derive from the routes.

These are the parameters and bodies that dependencies read by themselves, and the problems that a route may answer with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app import errors
from app.api.authentication import ON_BEHALF_OF_HEADER, PURPOSE_HEADER, PURPOSE_PATTERN
from app.api.conditional_requests import ENTITY_TAG_PATTERN
from app.api.cursors import CURSOR_PATTERN
from app.api.direct_route import DirectRoute
from app.api.problems import EXAMPLE_REQUEST_ID, MEDIA_TYPE, STATUS, Problem, Receipt, problem_of
from app.api.schemas.answers import DEFAULT_PAGE, MAXIMUM_PAGE, Revealed, Token
from app.api.schemas.fields import EXAMPLE_USER_ID
from app.api.schemas.oauth import TokenExchangeRequest
from app.api.schemas.requests import (
    BatchGetRequest,
    ExchangeRequest,
    PatchTokenRequest,
    RefreshRequest,
    StoreTokenRequest,
)
from app.api.token_response import TokenResponse
from app.tokens.freshness import MAXIMUM_MIN_TTL_SECONDS
from app.tokens.models import DEFAULT_SERVICE_TYPE, SLUG_PATTERN, UUID_PATTERN, TokenStatus

_REF = "#/components/schemas/{model}"
_REQUEST_BODIES: tuple[type[BaseModel], ...] = (
    StoreTokenRequest,
    PatchTokenRequest,
    ExchangeRequest,
    RefreshRequest,
    BatchGetRequest,
    TokenExchangeRequest,
    TokenResponse,
)
_SLUG = {"type": "string", "pattern": SLUG_PATTERN}

STORE_ERRORS = (errors.StoreUnavailable, errors.StoreTimeout, errors.StoreMisconfigured)
ENCRYPT_ERRORS = (errors.KeyUnavailable, errors.KeyDenied)
DECRYPT_ERRORS = (*ENCRYPT_ERRORS, errors.IntegrityError, errors.MalformedCiphertext)
PROVIDER_ERRORS = (errors.ProviderUnavailable, errors.ProviderMisconfigured, errors.RefreshInProgress)
BODY_ERRORS = (errors.MalformedBody, errors.BodyTooLarge)
EVERY_ROUTE: tuple[type[errors.VaultError], ...] = (
    errors.Unauthenticated,
    errors.Forbidden,
    errors.AuditUnavailable,
    errors.RateLimited,
    errors.Overloaded,
    errors.KeyUnavailable,
    errors.InvalidRequest,
    errors.InternalError,
)

USER_ID = {
    "name": "user_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid", "pattern": UUID_PATTERN},
    "example": EXAMPLE_USER_ID,
}
TOKEN_ID: tuple[dict[str, Any], ...] = (
    USER_ID,
    {"name": "provider", "in": "path", "required": True, "schema": _SLUG, "example": "canvas"},
    {
        "name": "service_type",
        "in": "query",
        "schema": {**_SLUG, "default": DEFAULT_SERVICE_TYPE},
        "description": "Service of the provider, for a provider with several, such as `calendar`.",
    },
)
INCLUDE = {
    "name": "include",
    "in": "query",
    "schema": {"type": "string", "enum": ["refresh_token"]},
    "description": "Also reveal the refresh token. Needs `tokens:reveal_refresh`.",
}
MIN_TTL = {
    "name": "min_ttl",
    "in": "query",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAXIMUM_MIN_TTL_SECONDS},
    "description": "Refresh the token first if it expires within these seconds, at most half of its lifetime. Default: "
    "the provider's margin. 0: never refresh.",
}
LIST_PARAMETERS: tuple[dict[str, Any], ...] = (
    {"name": "provider", "in": "query", "schema": _SLUG, "example": "canvas", "description": "Only this provider."},
    {
        "name": "status",
        "in": "query",
        "schema": {"type": "string", "enum": [status.value for status in TokenStatus]},
        "description": "Only this status.",
    },
    {
        "name": "expires_before",
        "in": "query",
        "schema": {"type": "string", "format": "date-time", "examples": ["2027-03-23T09:00:00Z"]},
        "description": "Only tokens whose access token expires before this time: RFC 3339 with an offset.",
    },
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAXIMUM_PAGE, "default": DEFAULT_PAGE},
        "description": "Tokens of a page, which may have fewer.",
    },
    {
        "name": "cursor",
        "in": "query",
        "schema": {"type": "string", "pattern": CURSOR_PATTERN},
        "description": "The `next_cursor` of the page before.",
    },
)
REVOKE = {
    "name": "revoke",
    "in": "query",
    "schema": {"type": "string", "enum": ["true", "required"]},
    "description": "`true`: revoke the secrets at the provider first, and delete whatever it says. `required`: keep a "
    "token unless all of its secrets are revoked.",
}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "schema": {
        "anyOf": [
            {"type": "string", "enum": ["*"]},
            {"type": "string", "pattern": f"^{ENTITY_TAG_PATTERN}(, *{ENTITY_TAG_PATTERN})*$"},
        ],
        "examples": ['"1795424400000"'],
    },
    "description": "Write only if the token has this version. `*`: only if the token exists.",
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string", "enum": ["*"]},
    "description": "Write only if the token does not exist.",
}
PURPOSE = {
    "name": PURPOSE_HEADER,
    "in": "header",
    "schema": {"type": "string", "pattern": PURPOSE_PATTERN, "examples": ["sync.courses"]},
    "description": "Purpose of the call, for the audit trail. Must not contain a secret.",
}
_USER_JWT = {
    "type": "apiKey",
    "in": "header",
    "name": ON_BEHALF_OF_HEADER,
    "description": "The JWT of the user that the call is on behalf of: Supabase Auth's access token. Service keys with "
    '`"on_behalf_of": "required"` need it. With it, a call concerns only that user.',
}
_BASIC = {"type": "http", "scheme": "basic", "description": "The name of the service and its key."}
_AUTHENTICATED = ("/v1/", "/oauth/")
_USERS_IN_BODY = frozenset({"/v1/tokens/batch-get"})
_ETAG = {
    "ETag": {
        "description": "Version of the token, in quotes.",
        "schema": {"type": "string", "examples": ['"1795424400000"']},
    }
}


def responses(
    *possible: type[errors.VaultError], etag: bool = False, created: bool = False, receipt: bool = False
) -> dict[int | str, Any]:
    """Return the `responses` of a route: its problems by status, its ETag, and the receipt of a revocation."""
    by_status: dict[int, list[type[errors.VaultError]]] = defaultdict(list)
    for error in dict.fromkeys((*EVERY_ROUTE, *possible)):
        by_status[STATUS[error]].append(error)
    described: dict[int | str, Any] = {status: _problem(kinds) for status, kinds in sorted(by_status.items())}
    if etag:
        described[200] = {"headers": _ETAG}
    if created:
        described[201] = {"description": "Created", "headers": _ETAG, "content": _content(Token)}
    if receipt:
        described[200] = {"description": "Deleted, with `revoke`", "model": Receipt}
    return described


def extra(
    *parameters: dict[str, Any],
    body: type[BaseModel] | None = None,
    media_type: str = "application/json",
    other_bodies: Mapping[str, type[BaseModel]] | None = None,
) -> dict[str, Any]:
    """Return the `openapi_extra` of a route: the parameters and the body that dependencies read by themselves.

    `other_bodies` are the models of media types other than `media_type`.
    """
    described: dict[str, Any] = {"parameters": list(parameters)} if parameters else {}
    if body is not None:
        content = _content(body, media_type)
        for other, model in (other_bodies or {}).items():
            content |= _content(model, other)
        described["requestBody"] = {"required": True, "content": content}
    return described


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, built once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=[route.described() if isinstance(route, DirectRoute) else route for route in app.routes],
        )
        schema["components"]["schemas"] |= _schemas_of_bodies()
        for answer in (Token, Revealed):  # FastAPI leaves the nulls out, which real answers have
            schema["components"]["schemas"][answer.__name__]["examples"] = answer.model_json_schema()["examples"]
        for path, methods in schema["paths"].items():
            if path.startswith(_AUTHENTICATED):  # read by authentication, so on every authenticated route
                for operation in methods.values():
                    operation.setdefault("parameters", []).append(PURPOSE)
                    if "{user_id}" in path or path in _USERS_IN_BODY:
                        operation["security"] += [{**scheme, "userJwt": []} for scheme in operation["security"]]
                    if path.startswith("/oauth/"):
                        operation["security"] += [{"serviceBasic": []}]
        schema["components"]["securitySchemes"] |= {"userJwt": _USER_JWT, "serviceBasic": _BASIC}
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _schemas_of_bodies() -> dict[str, Any]:
    _, definitions = models_json_schema([(model, "validation") for model in _REQUEST_BODIES], ref_template=_REF)
    schemas: dict[str, Any] = definitions["$defs"]
    for body in schemas.values():
        for field in body.get("properties", {}).values():
            field.pop("default", None)  # openapi-typescript takes a field with a default for a required one
    return schemas


def document_route(app: FastAPI) -> DirectRoute:
    """Return the route of the document. It needs no key, so the document is serialised once to keep requests cheap."""
    serialised = cache(lambda: bytes(JSONResponse(document(app)).body))

    async def openapi(_: Request) -> Response:
        return Response(serialised(), media_type="application/json")

    return DirectRoute("/openapi.json", openapi, include_in_schema=False)


def _content(model: type[BaseModel], media_type: str = "application/json") -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _problem(kinds: list[type[errors.VaultError]]) -> dict[str, Any]:
    content = _content(Problem, MEDIA_TYPE)
    content[MEDIA_TYPE]["examples"] = {kind.code: {"value": _example(kind)} for kind in kinds}
    described: dict[str, Any] = {"description": ", ".join(f"`{kind.code}`" for kind in kinds), "content": content}
    if any(kind.retryable for kind in kinds):
        described["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return described


def _example(kind: type[errors.VaultError]) -> dict[str, Any]:
    error = kind((kind.__doc__ or "").strip().partition("\n")[0])
    if isinstance(error, errors.InvalidRequest):
        # of a header that every authenticated route reads
        error = errors.InvalidRequest.of_field(PURPOSE_HEADER.lower(), f"{PURPOSE_HEADER} must match {PURPOSE_PATTERN}")
    return problem_of(error, EXAMPLE_REQUEST_ID)
