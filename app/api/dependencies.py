"""What routes ask for in their signatures."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request

from app.tokens.models import DEFAULT_SERVICE_TYPE, SLUG_PATTERN, UUID_PATTERN, TokenId
from app.tokens.vault import TokenVault

UserIdPath = Annotated[str, Path(pattern=UUID_PATTERN, json_schema_extra={"format": "uuid"})]
ProviderPath = Annotated[str, Path(pattern=SLUG_PATTERN, examples=["canvas"])]
ServiceType = Annotated[
    str, Query(pattern=SLUG_PATTERN, description="Only for providers with several services, like `calendar`.")
]


async def _vault(request: Request) -> TokenVault:
    vault: TokenVault = request.state.vault
    return vault


async def _token_id(
    user_id: UserIdPath, provider: ProviderPath, service_type: ServiceType = DEFAULT_SERVICE_TYPE
) -> TokenId:
    return TokenId(user_id.lower(), provider, service_type)


Vault = Annotated[TokenVault, Depends(_vault)]
TokenIdPath = Annotated[TokenId, Depends(_token_id)]
