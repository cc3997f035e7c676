"""Errors as RFC 9457 problems: the one table of status codes, and the handlers that use it."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from app import errors
from app.api.refusals import record_refused_request
from app.errors import InvalidRequest
from app.observability.request_log import note_failure

# --- What is wrong with a request, said without repeating any of it.
# pydantic's own messages quote what was sent, and a location may be a key that the caller made up. Only the type of an
# error and the names that our schemas know leave this module.

_OWN = "vault_"  # error types that our own validators raise; their messages hold no input

_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "string_type": "must be a string",
    "string_too_short": "is too short",
    "string_too_long": "is too long",
    "string_pattern_mismatch": "does not have the required form",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "greater_than_equal": "is too small",
    "less_than_equal": "is too large",
    "list_type": "must be a list",
    "too_long": "is too long",
    "too_short": "is too short",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "enum": "is not one of the allowed values",
    "literal_error": "is not one of the allowed values",
}


def invalid_request(problems: Sequence[Any]) -> InvalidRequest:
    """Translate pydantic's error list."""
    described = tuple(dict.fromkeys((_field(problem), _message(problem)) for problem in problems))
    summary = "; ".join(f"{field} {message}" for field, message in described[:5])
    return InvalidRequest(summary, problems=described)


def _message(problem: dict[str, Any]) -> str:
    kind = problem["type"]
    if kind.startswith(_OWN):
        return str(problem["msg"])
    return _MESSAGES.get(kind, "is not valid")


def _field(problem: dict[str, Any]) -> str:
    """Name the field by the parts of its location that are ours; an unknown key is the caller's text."""
    location = [part for part in problem["loc"] if part not in {"body", "path", "query", "header"}]
    if problem["type"] == "extra_forbidden":
        location = location[:-1]
    if "metadata" in location:
        location = location[: location.index("metadata") + 1]
    return ".".join(str(part) for part in location) or "body"


# --- Errors as RFC 9457 problems: the one table of status codes, and the handlers that answer with it.

MEDIA_TYPE: Final = "application/problem+json"

STATUS: Final[dict[type[errors.VaultError], int]] = {
    errors.InvalidRequest: 422,
    errors.MalformedBody: 400,
    errors.BodyTooLarge: 413,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.AuditUnavailable: 503,
    errors.RateLimited: 429,
    errors.Overloaded: 503,
    errors.TokenNotFound: 404,
    errors.TokenInactive: 409,
    errors.VersionConflict: 412,
    errors.StoreUnavailable: 503,
    errors.StoreTimeout: 504,
    errors.StoreMisconfigured: 500,
    errors.KeyUnavailable: 503,
    errors.KeyDenied: 500,
    errors.CredentialsDenied: 500,
    errors.IntegrityError: 500,
    errors.MalformedCiphertext: 500,
    errors.ContextMismatch: 500,
    errors.InternalError: 500,
}

# Refused before the vault itself could record the attempt.
_REFUSED_AT_THE_DOOR: Final = (
    errors.InvalidRequest,
    errors.MalformedBody,
    errors.BodyTooLarge,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.RateLimited,
)


class FieldProblem(BaseModel):
    """What is wrong with one field of the request. Never what was sent."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details. Dispatch on `code`."""

    type: str = Field(examples=["urn:pulseplan:token-vault:token_not_found"])
    title: str = Field(examples=["Token not found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["the user has no such token"])
    code: str = Field(examples=["token_not_found"])
    retryable: bool = Field(examples=[False], description="Whether the same request may succeed later.")
    request_id: str = Field(examples=["0b5c2f0e9d7c4d0c8e8f6f3d9a7b1c2e"])
    errors: list[FieldProblem] | None = Field(default=None, description="For `invalid_request`: each field's problem.")


def problem_of(error: errors.VaultError, request_id: str) -> dict[str, Any]:
    """Return the problem document of an error."""
    problem = _document(error.code, STATUS[type(error)], error.detail, request_id, retryable=error.retryable)
    if isinstance(error, errors.InvalidRequest) and error.problems:
        problem["errors"] = [{"field": field, "message": message} for field, message in error.problems]
    return problem


def problem_response(error: errors.VaultError, request_id: str) -> Response:
    """Return the answer to a call that failed with `error`, and note it for the request's line and count."""
    note_failure(error.code, error.detail)
    headers = {}
    if error.retryable:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="token-vault"'
    return JSONResponse(problem_of(error, request_id), STATUS[type(error)], headers, media_type=MEDIA_TYPE)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of a route with a problem document."""
    # Starlette's signature asks for handlers of Exception; each of these gets the class that it is registered for
    app.add_exception_handler(errors.VaultError, _on_vault_error)  # type: ignore[arg-type]  # Starlette's type wants a handler of any `Exception`
    app.add_exception_handler(RequestValidationError, _on_validation_error)  # type: ignore[arg-type]  # Starlette's type wants a handler of any `Exception`
    app.add_exception_handler(HTTPException, _on_http_exception)  # type: ignore[arg-type]  # Starlette's type wants a handler of any `Exception`


async def _on_vault_error(request: Request, error: errors.VaultError) -> Response:
    if isinstance(error, _REFUSED_AT_THE_DOOR) and not error.recorded:
        await record_refused_request(request, error)
    return problem_response(error, request.state.request_id)


async def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    return await _on_vault_error(request, invalid_request(error.errors()))


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Answer for the router: an unknown path or method. Starlette's own text is not passed on."""
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    detail = HTTPStatus(error.status_code).phrase
    note_failure(code, None)
    problem = _document(code, error.status_code, detail, request.state.request_id, retryable=False)
    headers = {"Allow": _allowed(request)} if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else error.headers
    return JSONResponse(problem, error.status_code, headers, media_type=MEDIA_TYPE)


def _allowed(request: Request) -> str:
    """Return the methods of all routes with this path; Starlette names those of the first one alone."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


def _document(code: str, status: int, detail: str, request_id: str, *, retryable: bool) -> dict[str, Any]:
    return {
        "type": f"urn:pulseplan:token-vault:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
        "request_id": request_id,
    }
