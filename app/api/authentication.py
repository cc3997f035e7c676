"""Who calls, and whether they may: a dependency on each route, never a matching of paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.callers.service_key import Scope, ServiceKey
from app.errors import Forbidden, Unauthenticated
from app.tokens.models import Caller

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

bearer = HTTPBearer(
    scheme_name="serviceKey",
    bearerFormat="ptv_ and 43 base64url characters",
    description="A service key. Its scopes and providers decide what it may do.",
    auto_error=False,
)


@dataclass(frozen=True, slots=True)
class AuthenticatedCaller:
    """A caller and the key that it presented."""

    key: ServiceKey
    caller: Caller

    def require_scope(self, scope: Scope) -> None:
        if scope not in self.key.scopes:
            message = f"the service key lacks the scope {scope.value}"
            raise Forbidden(message)

    def require_provider(self, provider: str) -> None:
        if not self.key.may_use(provider):
            message = "the service key is limited to other providers"
            raise Forbidden(message)

    def require_every_provider(self) -> None:
        if self.key.providers is not None:
            message = "the service key is limited to some providers, and this call concerns all"
            raise Forbidden(message)


def caller_with(scope: Scope) -> Callable[..., Awaitable[AuthenticatedCaller]]:
    """Return a dependency that demands a live key with `scope` and, where the path names one, for its provider."""

    async def authenticate(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> AuthenticatedCaller:
        if credentials is None:
            message = "a service key is needed: Authorization: Bearer ptv_…"
            raise Unauthenticated(message)
        key = request.state.service_keys.identify(credentials.credentials)
        request.state.service = key.service
        authenticated = AuthenticatedCaller(key, Caller(key.service, request.state.request_id))
        authenticated.require_scope(scope)
        provider = request.path_params.get("provider")
        if provider is not None:
            authenticated.require_provider(provider)
        return authenticated

    return authenticate


Reader = Annotated[AuthenticatedCaller, Depends(caller_with(Scope.READ))]
Revealer = Annotated[AuthenticatedCaller, Depends(caller_with(Scope.REVEAL))]
Writer = Annotated[AuthenticatedCaller, Depends(caller_with(Scope.WRITE))]
Deleter = Annotated[AuthenticatedCaller, Depends(caller_with(Scope.DELETE))]
