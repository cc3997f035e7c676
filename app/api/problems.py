"""Errors as RFC 9457 problems: the table of status codes, the problem document, the exception handlers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from app import errors
from app.api import unknown_fields
from app.api.direct_route import DirectRoute, ErrorHandler
from app.api.refusal_events import record_refused_request
from app.observability.request_log import note_failure
from app.tokens import deletion

MEDIA_TYPE: Final = "application/problem+json"
EXAMPLE_REQUEST_ID: Final = "0b5c2f0e9d7c4d0c8e8f6f3d9a7b1c2e"

STATUS: Final[dict[type[errors.VaultError], int]] = {
    errors.InvalidRequest: 422,
    errors.OAuthRequestRefused: 422,  # 400 at the token endpoint, which answers without problems
    errors.MalformedBody: 400,
    errors.BodyTooLarge: 413,
    errors.AnswerTooLarge: 413,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.ProviderForbidden: 403,
    errors.UserJwtRefused: 403,
    errors.AuditUnavailable: 503,
    errors.RateLimited: 429,
    errors.Overloaded: 503,
    errors.TokenNotFound: 404,
    errors.TokenInactive: 409,
    errors.TokenReferenced: 409,
    errors.VersionConflict: 412,
    errors.StoreUnavailable: 503,
    errors.WritesUnavailable: 503,
    errors.StoreTimeout: 504,
    errors.StoreMisconfigured: 500,
    errors.KeyUnavailable: 503,
    errors.KeyDenied: 500,
    errors.CredentialsDenied: 500,
    errors.IntegrityError: 500,
    errors.MalformedCiphertext: 500,
    errors.ProviderUnavailable: 503,
    errors.ProviderMisconfigured: 500,
    errors.RefreshInProgress: 503,
    errors.GrantRejected: 409,
    errors.RevocationUnsupported: 422,
    errors.InternalError: 500,
}

# raised before the vault is called, so the vault has recorded no audit event
_REFUSALS: Final = (
    errors.InvalidRequest,
    errors.MalformedBody,
    errors.BodyTooLarge,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.RateLimited,
    errors.KeyUnavailable,  # of users' JWTs
)


class FieldProblem(BaseModel):
    """The problem of one field of the request, without the field's value."""

    field: str
    message: str


_Outcome = Literal["revoked", "unsupported", "failed", "unknown"]
_RECEIPT: Final[dict[str, JsonValue]] = {"access_token": "revoked", "refresh_token": "revoked", "deleted": True}


class Receipt(BaseModel):
    """What became of a token that was to be revoked and deleted. `refresh_token` is null if it has none.

    `revoked`: the provider says so. `unsupported`: it cannot revoke this secret. `failed`: the secret is not revoked.
    `unknown`: it may or may not be.
    """

    access_token: _Outcome
    refresh_token: _Outcome | None
    deleted: bool

    model_config = ConfigDict(json_schema_extra={"examples": [_RECEIPT]})


class TokenReceipt(BaseModel):
    """The receipt of one token of an erasure."""

    provider: str
    service_type: str
    access_token: _Outcome
    refresh_token: _Outcome | None
    deleted: bool

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"provider": "google", "service_type": "calendar", **_RECEIPT}]}
    )


class KeptToken(BaseModel):
    """A token that an erasure could not delete, with the problem that prevented it."""

    user_id: str
    provider: str
    service_type: str
    version: int
    problem: Problem


class Problem(BaseModel):
    """RFC 9457 problem details. Dispatch on `code`."""

    type: str = Field(examples=["urn:pulseplan:token-vault:token_not_found"])
    title: str = Field(examples=["Token not found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["the user has no such token"])
    code: str = Field(examples=["token_not_found"])
    retryable: bool = Field(examples=[False], description="Whether the same request may succeed later.")
    request_id: str = Field(examples=[EXAMPLE_REQUEST_ID])
    errors: list[FieldProblem] | None = Field(
        default=None,
        description="For `invalid_request`: one entry per field. For `forbidden`: the header, if it is the user's JWT.",
    )
    receipt: Receipt | None = Field(default=None, description="Of a deletion that has revoked before it failed.")
    deleted: int | None = Field(default=None, description="Of an erasure that has kept tokens: the number of others.")
    kept: list[KeptToken] | None = Field(default=None, description="Of an erasure: the tokens that were kept.")
    receipts: list[TokenReceipt] | None = Field(default=None, description="Of an erasure with `revoke`: every token.")


def problem_of(error: errors.VaultError, request_id: str) -> dict[str, Any]:
    """Return the problem document of an error."""
    problem = _document(error.code, STATUS[type(error)], error.detail, request_id, retryable=error.retryable)
    if isinstance(error, errors.InvalidRequest | errors.UserJwtRefused) and error.problems:
        problem["errors"] = [{"field": field, "message": message} for field, message in error.problems]
    if isinstance(error.receipt, deletion.Receipt):
        problem["receipt"] = receipt_answer(error.receipt)
    return problem


def receipt_answer(receipt: deletion.Receipt) -> dict[str, Any]:
    """Return the fields of `Receipt`."""
    return {
        "access_token": receipt.access_token.value,
        "refresh_token": None if receipt.refresh_token is None else receipt.refresh_token.value,
        "deleted": receipt.deleted,
    }


def problem_response(error: errors.VaultError, request_id: str, *, more: Mapping[str, Any] | None = None) -> Response:
    """Return the response to a call that failed with `error`, and note the failure for the log line and the count.

    `more` holds further members of the problem.
    """
    note_failure(error.code, error.detail)
    headers = {}
    if error.retryable:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="token-vault"'
    problem = problem_of(error, request_id) | dict(more or {})
    return JSONResponse(problem, STATUS[type(error)], headers, media_type=MEDIA_TYPE)


async def _on_vault_error(request: Request, error: errors.VaultError) -> Response:
    if isinstance(error, errors.UserJwtRefused) and request.state.user_jwts is not None:
        request.state.user_jwts.refused(error)
    if isinstance(error, _REFUSALS) and not error.recorded:
        await record_refused_request(request, error)
    route = request.scope.get("route")
    response = route.error_response(request, error) if isinstance(route, DirectRoute) else None
    return problem_response(error, request.state.request_id) if response is None else response


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Answer for the router, for an unknown path or method. Starlette's own text is not passed on."""
    status = int(error.status_code)  # the log shows no `HTTPStatus`
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    note_failure(code, None)
    detail = HTTPStatus(status).phrase
    problem = _document(code, status, detail, request.state.request_id, retryable=False)
    headers = {"Allow": _allowed(request)} if status == HTTPStatus.METHOD_NOT_ALLOWED else error.headers
    return JSONResponse(problem, status, headers, media_type=MEDIA_TYPE)


# of the router: every error of a route becomes a problem document
PROBLEM_HANDLERS: Final[dict[type[Exception], ErrorHandler]] = {
    errors.VaultError: _on_vault_error,
    HTTPException: _on_http_exception,
}


def _allowed(request: Request) -> str:
    """Return the methods of every route with this path; Starlette names those of the first route only."""
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


# pydantic's messages quote the input, and a location may be a key that the caller chose. Only the error's type, the
# bounds and names in our schemas, and unknown names that cannot be secrets are passed on.

_CUSTOM_ERROR_PREFIX: Final = "vault_"  # types raised by the validators in schemas, whose messages hold no input

# with the members of an error's context that come from the schema
_MESSAGES: Final = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_pattern_mismatch": "does not have the required form",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}
_LENGTHS: Final = {  # the second two are of lists, and of secrets
    "string_too_short": ("min_length", "at least"),
    "string_too_long": ("max_length", "at most"),
    "too_short": ("min_length", "at least"),
    "too_long": ("max_length", "at most"),
}
_CHOICES: Final = frozenset({"enum", "literal_error"})


def invalid_request(validation_errors: Sequence[Any], model: type[BaseModel]) -> errors.InvalidRequest:
    """Return the error for pydantic's list of errors of a body, without any input in it."""
    problems = tuple(dict.fromkeys(_problem(error, model) for error in validation_errors))
    summary = "; ".join(f"{field} {message}" for field, message in problems[:5])
    return errors.InvalidRequest(summary, problems=problems)


def _problem(error: dict[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    """Return the dotted path of the field and the message."""
    location = list(error["loc"])
    if error["type"] == "extra_forbidden":
        if not unknown_fields.may_be_named(location[-1]):
            return _path(location[:-1]), unknown_fields.NOT_NAMED
        return _path(location), unknown_fields.describe(model, location)
    return _path(location), _message(error)


def _message(error: dict[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind.startswith(_CUSTOM_ERROR_PREFIX):
        return str(error["msg"])
    if kind in _CHOICES:
        return f"must be one of: {_choices(context['expected'])}"
    if kind in _LENGTHS:
        bound, relation = _LENGTHS[kind]
        count, unit = context[bound], "item" if context.get("field_type") == "List" else "character"
        return f"must have {relation} {count} {unit}{'' if count == 1 else 's'}"
    return _MESSAGES.get(kind, "is not valid").format(**context)


def _choices(expected: str) -> str:
    """Return pydantic's "'a', 'b' or 'c'" without quotes."""
    return expected.replace(" or ", ", ").replace("'", "")


def _path(location: list[Any]) -> str:
    """Return the dotted path, without keys inside of `metadata`, which the caller chose."""
    if "metadata" in location:
        location = location[: location.index("metadata") + 1]
    return ".".join(str(part) for part in location) or "body"
