"""Who calls, and whether they may: a dependency on each route, never a matching of paths."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from app.callers.service_keys import Scope, ServiceKey
from app.errors import Forbidden, InvalidRequest, Unauthenticated
from app.tokens.models import Caller

PURPOSE_HEADER = "X-Purpose"
PURPOSE_PATTERN = r"^[a-z][a-z0-9_.-]{0,63}$"
_PURPOSE = re.compile(PURPOSE_PATTERN)


@dataclass(frozen=True, slots=True)
class AuthenticatedCaller:
    """A caller and the key that it presented."""

    key: ServiceKey
    caller: Caller

    def require_scope(self, scope: Scope) -> None:
        if scope not in self.key.scopes:
            raise Forbidden(f"the service key lacks the scope {scope.value}")

    def require_provider(self, provider: str) -> None:
        if not self.key.may_use(provider):
            raise Forbidden("the service key is limited to other providers")

    def require_every_provider(self) -> None:
        if self.key.providers is not None:
            raise Forbidden("the service key is limited to some providers, and this call concerns all")


class CallerWith(HTTPBearer):
    """A dependency that demands a live service key with `scope`.

    It is a security scheme of FastAPI's, so that each route that depends on it says so in the OpenAPI document.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__(
            scheme_name="serviceKey",
            bearerFormat="ptv_ and 43 base64url characters",
            description="A service key. Its scopes and providers decide what it may do.",
        )
        self._scope = scope

    async def __call__(self, request: Request) -> AuthenticatedCaller:  # type: ignore[override]  # what we make of it
        return self.authenticate(request)

    def authenticate(self, request: Request) -> AuthenticatedCaller:
        """Return the caller, or raise `Unauthenticated`, `RateLimited` or `Forbidden`."""
        presented_keys = request.headers.getlist("authorization")
        scheme, _, presented = (presented_keys[0] if len(presented_keys) == 1 else "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("a service key is needed: Authorization: Bearer ptv_…")
        key = request.state.service_keys.identify(presented)
        request.state.service = key.service
        request.state.key = key
        request.state.admitted.enter_service(key.service)
        caller = AuthenticatedCaller(key, _caller(key, request))
        caller.require_scope(self._scope)
        return caller


def _caller(key: ServiceKey, request: Request) -> Caller:
    address = request.client.host if request.client else None
    return Caller(key.service, request.state.request_id, key.fingerprint, address, _purpose(request))


def is_purpose(text: str) -> bool:
    return _PURPOSE.fullmatch(text) is not None


def _purpose(request: Request) -> str | None:
    purpose = request.headers.get(PURPOSE_HEADER)
    if purpose is not None and not is_purpose(purpose):
        raise InvalidRequest.of_field(PURPOSE_HEADER.lower(), f"{PURPOSE_HEADER} must match {PURPOSE_PATTERN}")
    return purpose


Reader = Annotated[AuthenticatedCaller, Depends(CallerWith(Scope.READ))]
Revealer = Annotated[AuthenticatedCaller, Depends(CallerWith(Scope.REVEAL))]
Admin = Annotated[AuthenticatedCaller, Depends(CallerWith(Scope.ADMIN))]
Deleter = Annotated[AuthenticatedCaller, Depends(CallerWith(Scope.DELETE))]
