"""Dependencies of the routes: the vault, the audit events, and an authorised call on one token."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

from fastapi import Depends, Request
from starlette.datastructures import QueryParams

from app.api.authentication import AuthenticatedCaller, CallerWith
from app.callers.service_keys import Scope
from app.errors import InvalidRequest
from app.tokens.events import TokenEvents
from app.tokens.models import DEFAULT_SERVICE_TYPE, Caller, TokenId
from app.tokens.vault import TokenVault

_QUERY_PARAMETERS: Final = frozenset({"service_type", "include", "min_ttl", "revoke"})
_REMEMBERED_BYTES: Final = 128  # of a query


async def _vault(request: Request) -> TokenVault:
    vault: TokenVault = request.state.vault
    return vault


async def _user_id(request: Request) -> str:
    user_id: str = request.scope["path_params"]["user_id"]
    return user_id  # the vault validates it


async def _events(request: Request) -> TokenEvents:
    events: TokenEvents = request.state.events
    return events


Vault = Annotated[TokenVault, Depends(_vault)]
UserIdInPath = Annotated[str, Depends(_user_id)]
Events = Annotated[TokenEvents, Depends(_events)]


class TokenCall(NamedTuple):
    """An authorised call on one token."""

    authenticated: AuthenticatedCaller
    token_id: TokenId
    vault: TokenVault

    @property
    def caller(self) -> Caller:
        return self.authenticated.caller


class TokenCallWith(CallerWith):
    """Dependency that authenticates, then reads the token id from path and query.

    FastAPI validates its own path and query parameters before any dependency runs, so before authentication; in a
    reveal this took as long as the vault itself. `app.api.openapi` documents the parameters instead.
    """

    async def __call__(self, request: Request) -> TokenCall:  # type: ignore[override]  # not HTTPBearer's result
        authenticated = await self.authenticate(request)
        path = request.scope["path_params"]
        authenticated.require_provider(path["provider"])
        service_type = DEFAULT_SERVICE_TYPE
        if request.scope["query_string"]:
            service_type = token_parameters(request).get("service_type", DEFAULT_SERVICE_TYPE)
        token_id = TokenId.parse(path["user_id"], path["provider"], service_type)
        return TokenCall(authenticated, token_id, request.scope["state"]["vault"])


def token_parameters(request: Request) -> QueryParams:
    """Return the query of a route of one token."""
    return known_parameters(request, _QUERY_PARAMETERS)


def known_parameters(request: Request, known: frozenset[str]) -> QueryParams:
    """Return the query. Refuses unknown parameters: ignoring a misspelt service_type could delete another token."""
    query: bytes = request.scope["query_string"]
    return _parse(query, known) if len(query) <= _REMEMBERED_BYTES else _parse.__wrapped__(query, known)


@lru_cache(maxsize=256)  # callers repeat a few queries, and parsing one costs as much as decrypting a token
def _parse(query: bytes, known: frozenset[str]) -> QueryParams:
    parameters = QueryParams(query)
    if len(parameters.multi_items()) != len(parameters) or not parameters.keys() <= known:
        raise InvalidRequest.of_field("query", "the query has an unknown or repeated parameter")
    return parameters


class Revoke(StrEnum):
    """Whether a deletion revokes the secrets at their provider first, and keeps a token whose secrets it cannot."""

    BEST_EFFORT = "true"
    REQUIRED = "required"


def revoke_of(parameters: QueryParams) -> Revoke | None:
    """Return what the parameter `revoke` asks for."""
    value = parameters.get("revoke")
    if value is None:
        return None
    try:
        return Revoke(value)
    except ValueError:
        raise InvalidRequest.of_field("revoke", "revoke must be true or required") from None


RevealCall = Annotated[TokenCall, Depends(TokenCallWith(Scope.REVEAL))]
WriteCall = Annotated[TokenCall, Depends(TokenCallWith(Scope.WRITE))]
RewrapCall = Annotated[TokenCall, Depends(TokenCallWith(Scope.ADMIN))]
DeleteCall = Annotated[TokenCall, Depends(TokenCallWith(Scope.DELETE))]
