"""OAuth at the token endpoint: client authentication, form-encoded parameters and errors (RFC 6749, RFC 8693)."""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

from fastapi import Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from app import errors
from app.api.authentication import AuthenticatedCaller, CallerWith, is_on_behalf_of, presented_credentials
from app.api.direct_route import DirectRoute
from app.api.openapi import BODY_ERRORS, DECRYPT_ERRORS, EVERY_ROUTE, PROVIDER_ERRORS, STORE_ERRORS
from app.api.problems import EXAMPLE_REQUEST_ID, MEDIA_TYPE, STATUS, Problem, invalid_request
from app.api.request_body import read_body, require_media_type
from app.api.schemas.oauth import AUDIENCE_PATTERN, TOKEN_EXCHANGE, TokenError, TokenExchangeRequest
from app.callers.service_keys import ServiceKey
from app.errors import InvalidRequest, MalformedBody, OAuthRequestRefused, Unauthenticated
from app.observability.request_log import note_failure

FORM: Final = "application/x-www-form-urlencoded"
_MAXIMUM_PARAMETERS: Final = 32
_AUDIENCE: Final = re.compile(AUDIENCE_PATTERN)
_TARGETS: Final = frozenset({"audience", "resource"})  # RFC 8693 permits several, which no single token can serve
_CREDENTIALS: Final = frozenset({"client_secret", "client_assertion"})  # a second method, RFC 6749, section 2.3
_BASIC_CHALLENGE: Final = 'Basic realm="token-vault", charset="UTF-8"'
_BEARER_CHALLENGE: Final = 'Bearer realm="token-vault"'
_UNQUOTABLE: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")  # in error_description
# load shedding and defects are answered outside of the route
_BEFORE_ROUTING: Final = {
    status: {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}} for status in (500, 503)
}

_ERRORS: Final[dict[type[errors.VaultError], tuple[str, HTTPStatus]]] = {
    errors.Unauthenticated: ("invalid_client", HTTPStatus.UNAUTHORIZED),
    errors.Forbidden: ("unauthorized_client", HTTPStatus.BAD_REQUEST),
    errors.ProviderForbidden: ("invalid_target", HTTPStatus.BAD_REQUEST),
    errors.UserJwtRefused: ("invalid_request", HTTPStatus.BAD_REQUEST),  # RFC 8693, section 2.2.2
    errors.InvalidRequest: ("invalid_request", HTTPStatus.BAD_REQUEST),
    errors.MalformedBody: ("invalid_request", HTTPStatus.BAD_REQUEST),
    errors.BodyTooLarge: ("invalid_request", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    errors.TokenNotFound: ("invalid_target", HTTPStatus.BAD_REQUEST),
    errors.TokenInactive: ("invalid_grant", HTTPStatus.BAD_REQUEST),
    errors.GrantRejected: ("invalid_grant", HTTPStatus.BAD_REQUEST),
}


def oauth_error(error: errors.VaultError) -> tuple[str, int]:
    """Return OAuth's error code and the status of an error.

    RFC 6749 has no code for failures of the server here, so those of its section 4.1.2.1 are used.
    """
    if isinstance(error, OAuthRequestRefused):
        return error.error, HTTPStatus.BAD_REQUEST
    if type(error) in _ERRORS:
        return _ERRORS[type(error)]
    return "temporarily_unavailable" if error.retryable else "server_error", STATUS[type(error)]


class TokenEndpointRoute(DirectRoute):
    """`DirectRoute` whose errors are those of RFC 6749, section 5.2, with the vault's own `code` and `request_id`."""

    def error_response(self, request: Request, error: errors.VaultError) -> Response:
        """Return the answer, and note the failure for the log line and the count."""
        note_failure(error.code, error.detail)
        _, status = oauth_error(error)
        headers = {"Retry-After": str(error.retry_after_seconds)} if error.retryable else {}
        if status == HTTPStatus.UNAUTHORIZED:
            scheme, _ = presented_credentials(request)
            headers["WWW-Authenticate"] = _BEARER_CHALLENGE if scheme == "bearer" else _BASIC_CHALLENGE
        return JSONResponse(_error_body(error, request.state.request_id), status, headers)


def token_responses() -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of the token endpoint: its errors by status, with an example of each."""
    possible: list[errors.VaultError] = [
        kind((kind.__doc__ or "").strip().partition("\n")[0])
        for kind in (*EVERY_ROUTE, *BODY_ERRORS, *STORE_ERRORS, *DECRYPT_ERRORS, *PROVIDER_ERRORS, *_ERRORS)
        if kind is not errors.GrantRejected  # the same answer as that of its base
    ]
    possible += [
        OAuthRequestRefused("the request names another grant, target or scope than the vault can serve", error=error)
        for error in ("unsupported_grant_type", "invalid_target", "invalid_scope")
    ]
    examples: dict[int, dict[str, Any]] = defaultdict(dict)
    for error in possible:
        name, status = oauth_error(error)
        example = _error_body(error, EXAMPLE_REQUEST_ID)
        examples[status].setdefault(name, {"value": example})
    return {
        status: {
            "description": ", ".join(f"`{name}`" for name in named),
            "model": TokenError,
            "content": {"application/json": {"examples": named}, **_BEFORE_ROUTING.get(status, {})},
        }
        for status, named in sorted(examples.items())
    }


def _error_body(error: errors.VaultError, request_id: str) -> dict[str, str]:
    return {
        "error": oauth_error(error)[0],
        "error_description": _UNQUOTABLE.sub("'", error.detail),
        "code": error.code,
        "request_id": request_id,
    }


class OAuthClient(CallerWith):
    """Dependency that requires a service key with a scope, as HTTP Basic (service and key) or Bearer.

    The user is that of the subject token, so `X-On-Behalf-Of` is refused.
    """

    async def authenticate(self, request: Request) -> AuthenticatedCaller:
        client = self.admit(request)
        if is_on_behalf_of(request):
            raise InvalidRequest("the subject_token names the user, so X-On-Behalf-Of must be left out")
        return client

    def identify(self, request: Request) -> ServiceKey:
        """Return the service key, or raise `Unauthenticated`.

        Both parts of Basic are form-encoded before they are joined (RFC 6749, section 2.3.1).
        """
        scheme, presented = presented_credentials(request)
        if scheme == "bearer":
            return super().identify(request)
        if scheme != "basic":
            raise Unauthenticated("a service key is required: HTTP Basic with the service and its key, or Bearer")
        try:
            name, separator, secret = base64.b64decode(presented, validate=True).decode("ascii").partition(":")
        except ValueError:
            name = separator = secret = ""
        if not separator:
            raise Unauthenticated("HTTP Basic needs the service as user name and its key as password")
        key: ServiceKey = request.state.service_keys.identify(unquote_plus(secret))
        if key.service != unquote_plus(name):
            raise Unauthenticated("the service key is another service's")
        return key


async def token_exchange_request(request: Request) -> TokenExchangeRequest:
    """Dependency that gives the parameters; raises `MalformedBody`, `BodyTooLarge` or `InvalidRequest`."""
    parameters = await _parameters(request)
    if parameters.get("grant_type") not in {None, TOKEN_EXCHANGE}:
        raise OAuthRequestRefused("the vault exchanges tokens and has no other grant", error="unsupported_grant_type")
    if not _CREDENTIALS.isdisjoint(parameters):
        raise InvalidRequest("the service key belongs in the Authorization header alone")
    if "actor_token" in parameters:
        raise InvalidRequest("an actor_token is not supported: the service key names the actor")
    if "resource" in parameters or _AUDIENCE.fullmatch(parameters.get("audience", "a")) is None:
        raise OAuthRequestRefused(
            "the target is an audience: provider or provider/service_type", error="invalid_target"
        )
    known = {name: value for name, value in parameters.items() if name in TokenExchangeRequest.model_fields}
    try:
        return TokenExchangeRequest.model_validate(known)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise invalid_request(problems, TokenExchangeRequest) from None


async def _parameters(request: Request) -> dict[str, str]:
    """Return the parameters of the form. One without a value counts as omitted (RFC 6749, section 3.2)."""
    require_media_type(request, FORM)
    try:
        pairs = parse_qsl(
            (await read_body(request)).decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_MAXIMUM_PARAMETERS,
        )
    except ValueError:  # its text quotes the body; an error of decoding is one too
        raise MalformedBody(f"the body is not form-encoded, or has over {_MAXIMUM_PARAMETERS} parameters") from None
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        names = [name for name, _ in pairs]
        if any(names.count(name) > 1 for name in parameters.keys() - _TARGETS):
            raise InvalidRequest("a parameter is given more than once")
        raise OAuthRequestRefused("a token serves one audience only", error="invalid_target")
    return {name: value for name, value in parameters.items() if value}
