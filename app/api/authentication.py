"""Authentication and authorisation of callers.

Both are dependencies of the routes: a middleware that matches paths can be bypassed (CVE-2026-48710 of Starlette).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, NamedTuple

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from app.callers.service_keys import Scope, ServiceKey
from app.callers.user_jwt_refusals import JwtRefusal, refusal
from app.errors import Forbidden, InvalidRequest, ProviderForbidden, Unauthenticated
from app.tokens.models import Caller

if TYPE_CHECKING:  # imports PyJWT
    from app.callers.user_jwt import UserJwtVerifier

PURPOSE_HEADER = "X-Purpose"
PURPOSE_PATTERN = r"^[a-z][a-z0-9_.-]{0,63}$"
_PURPOSE = re.compile(PURPOSE_PATTERN)
_AUTHORIZATION = b"authorization"
_PURPOSE_NAME = PURPOSE_HEADER.lower().encode()
ON_BEHALF_OF_HEADER = "X-On-Behalf-Of"
_ON_BEHALF_OF_NAME = ON_BEHALF_OF_HEADER.lower().encode()


class AuthenticatedCaller(NamedTuple):
    """A caller and its service key. Each `require_…` raises `Forbidden` unless the key permits it."""

    key: ServiceKey
    caller: Caller

    def require_scope(self, scope: Scope) -> None:
        if scope not in self.key.scopes:
            raise Forbidden(f"the service key lacks the scope {scope.value}")

    def require_provider(self, provider: str) -> None:
        if not self.key.may_use(provider):
            raise ProviderForbidden("the service key is limited to other providers")

    def require_every_provider(self) -> None:
        if self.key.providers is not None:
            raise Forbidden("the service key is limited to some providers, but this call concerns all of them")

    def require_user(self, user_id: str) -> None:
        """Require that a call on behalf of a user concerns only this user."""
        if self.caller.on_behalf_of is not None and self.caller.on_behalf_of != user_id.lower():
            raise refusal(JwtRefusal.OTHER_USER)


class CallerWith(HTTPBearer):
    """Dependency that requires a live service key with `scope`.

    A call on behalf of a user must concern that user: the one in the path, and a route without a user in its path is
    refused. With `users_in_body`, the route itself calls `require_user` for each user in the body.

    As a FastAPI security scheme it appears in the OpenAPI document on every route that depends on it.
    """

    def __init__(self, scope: Scope, *, users_in_body: bool = False) -> None:
        super().__init__(
            scheme_name="serviceKey",
            bearerFormat="ptv_ and 43 base64url characters",
            description="A service key. Its scopes and providers decide which calls it permits.",
        )
        self._scope = scope
        self._users_in_body = users_in_body

    async def __call__(self, request: Request) -> AuthenticatedCaller:  # type: ignore[override]  # not HTTPBearer's result
        return await self.authenticate(request)

    async def authenticate(self, request: Request) -> AuthenticatedCaller:
        """Return the caller.

        Raises `Unauthenticated`, `RateLimited`, `InvalidRequest`, `Forbidden`, or `KeyUnavailable` while no key can
        verify users' JWTs.

        Leaves `service` and `caller` in the request's state, for the log, the trace and the audit event of a refusal.
        """
        authenticated = self.admit(request)
        if authenticated.key.on_behalf_of is None and not _headers(request, _ON_BEHALF_OF_NAME):
            return authenticated
        return await self._on_behalf_of_user(request, authenticated)

    def admit(self, request: Request) -> AuthenticatedCaller:
        """Return the caller with its key and the scope; raises as `authenticate` does, but for the user's JWT."""
        state = request.scope["state"]  # a dictionary: `request.state` costs several times as much
        key, purposes = self.identify(request), _headers(request, _PURPOSE_NAME)
        purpose = purposes[0] if purposes else None
        is_valid = purpose is None or _PURPOSE.fullmatch(purpose) is not None
        caller = Caller(
            key.service, state["request_id"], key.fingerprint, client_address(request), purpose if is_valid else None
        )
        state["service"], state["caller"] = key.service, caller
        state["admitted"].enter_service(key.service)
        if not is_valid:
            raise InvalidRequest.of_field(PURPOSE_HEADER.lower(), f"{PURPOSE_HEADER} must match {PURPOSE_PATTERN}")
        authenticated = AuthenticatedCaller(key, caller)
        authenticated.require_scope(self._scope)
        return authenticated

    def identify(self, request: Request) -> ServiceKey:
        """Return the service key, or raise `Unauthenticated`."""
        scheme, presented = presented_credentials(request)
        if scheme != "bearer":
            raise Unauthenticated("a service key is required: Authorization: Bearer ptv_…")
        key: ServiceKey = request.scope["state"]["service_keys"].identify(presented)
        return key

    async def _on_behalf_of_user(self, request: Request, authenticated: AuthenticatedCaller) -> AuthenticatedCaller:
        """Return the caller with the user of its JWT; a JWT is verified even if the service key needs none."""
        user_id = request.path_params.get("user_id")
        if user_id is None and not self._users_in_body:
            raise Forbidden("the call is on behalf of a user, but the route concerns all users")
        presented = _headers(request, _ON_BEHALF_OF_NAME)
        if request.state.user_jwts is not None and len(presented) != 1:
            raise refusal(JwtRefusal.REPEATED if presented else JwtRefusal.MISSING)
        authenticated = await acting_for_user(request, authenticated, presented[0] if presented else "")
        if user_id is not None:
            authenticated.require_user(user_id)
        return authenticated


async def acting_for_user(request: Request, authenticated: AuthenticatedCaller, jwt: str) -> AuthenticatedCaller:
    """Return the caller with the user of a JWT; raises `UserJwtRefused` or `KeyUnavailable`."""
    verifier: UserJwtVerifier | None = request.state.user_jwts
    if verifier is None:
        raise refusal(JwtRefusal.NOT_CONFIGURED)
    request.state.caller = authenticated.caller._replace(on_behalf_of=await verifier.user_of(jwt))
    return AuthenticatedCaller(authenticated.key, request.state.caller)


def presented_credentials(request: Request) -> tuple[str, str]:
    """Return the scheme in lower case and the credentials of the only Authorization header; two empty texts if none."""
    authorization = _headers(request, _AUTHORIZATION)
    scheme, _, presented = (authorization[0] if len(authorization) == 1 else "").partition(" ")
    return scheme.lower(), presented


def is_on_behalf_of(request: Request) -> bool:
    """Whether the request has the header with a user's JWT."""
    return bool(_headers(request, _ON_BEHALF_OF_NAME))


def _headers(request: Request, name: bytes) -> list[str]:
    """Return the values of a header; Starlette's mapping costs several times as much."""
    return [value.decode("latin-1") for each, value in request.scope["headers"] if each == name]


def client_address(request: Request) -> str | None:
    client = request.scope["client"]
    return client[0] if client else None


Reader = Annotated[AuthenticatedCaller, Depends(CallerWith(Scope.READ))]
Revealer = Annotated[AuthenticatedCaller, Depends(CallerWith(Scope.REVEAL, users_in_body=True))]
Admin = Annotated[AuthenticatedCaller, Depends(CallerWith(Scope.ADMIN))]
Deleter = Annotated[AuthenticatedCaller, Depends(CallerWith(Scope.DELETE))]
