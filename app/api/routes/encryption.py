"""The census of the stored tokens by encryption scheme and key version."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from app.api.answers import json_response
from app.api.authentication import Admin
from app.api.dependencies import Vault
from app.api.direct_route import DirectRoute
from app.api.openapi import STORE_ERRORS, responses
from app.tokens.census import Census

router = APIRouter(prefix="/v1/encryption", tags=["encryption"], route_class=DirectRoute)


class SchemeCount(BaseModel):
    """Tokens by scheme. `materials` are the formats of their ciphertexts; null: not written by the vault."""

    scheme: str | None
    materials: list[str]
    tokens: int


class KeyVersionCount(BaseModel):
    """Tokens with a secret under this version of the master key."""

    version: int
    tokens: int
    refused_above: int = Field(description="Tokens that become unreadable if `MIN_KEY_VERSION` is the next version.")


class EncryptionStatus(BaseModel):
    """The stored tokens, counted by encryption scheme and key version."""

    primary_scheme: str | None = Field(description="Null until KMS has resolved the alias of the key.")
    tokens: int
    due: int | None = Field(
        description="Tokens that are not under the primary scheme, so that a sweep would rewrap them. Null if unknown."
    )
    unknown: int = Field(description="Tokens whose ciphertext has no known format.")
    schemes: list[SchemeCount]
    key_versions: list[KeyVersionCount]
    refused_without_legacy_formats: int = Field(
        description="Tokens that become unreadable if `ALLOW_LEGACY_FORMATS` is false."
    )

    @classmethod
    def of(cls, census: Census) -> EncryptionStatus:
        return cls(
            primary_scheme=census.primary_scheme,
            tokens=census.rows,
            due=census.due,
            unknown=census.unknown,
            schemes=[
                SchemeCount(scheme=line.scheme, materials=list(line.materials), tokens=line.rows)
                for line in census.lines
            ],
            key_versions=[
                KeyVersionCount(version=version, tokens=rows, refused_above=census.below_version(version + 1))
                for version, rows in census.versions.items()
            ],
            refused_without_legacy_formats=census.legacy,
        )


@router.get(
    "", summary="Show which keys are in use", response_model=EncryptionStatus, responses=responses(*STORE_ERRORS)
)
async def encryption_status(authenticated: Admin, vault: Vault) -> Response:
    """Count the tokens by scheme and key version. Needs `tokens:admin` and a key that is not limited to providers."""
    authenticated.require_every_provider()
    return json_response(EncryptionStatus.of(await vault.census()))
