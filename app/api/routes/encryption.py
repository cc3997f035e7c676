"""How the stored tokens are encrypted."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from app.api.authentication import Admin
from app.api.dependencies import Vault
from app.api.openapi import STORE, answers
from app.api.schemas import json_answer
from app.tokens.census import Census

router = APIRouter(prefix="/v1/encryption", tags=["encryption"])


class SchemeCount(BaseModel):
    """Tokens that are encrypted in one way.

    Where something other than the vault wrote them there is no scheme, and `materials` tells what their ciphertexts
    look like.
    """

    scheme: str | None
    materials: list[str]
    tokens: int


class KeyVersionCount(BaseModel):
    """Tokens of which a secret needs this version of the master key."""

    version: int
    tokens: int
    refused_above: int = Field(description="How many tokens `MIN_KEY_VERSION` at the next version would refuse.")


class EncryptionStatus(BaseModel):
    """How the stored tokens are encrypted."""

    primary_scheme: str | None = Field(description="Null while KMS has not said which key an alias names.")
    tokens: int
    due: int | None = Field(
        description="How many are not under the primary scheme; a sweep would move them. Null while that is unknown."
    )
    unknown: int = Field(description="How many have the shape of no known format.")
    schemes: list[SchemeCount]
    key_versions: list[KeyVersionCount]
    refused_without_legacy_formats: int = Field(description="How many `ALLOW_LEGACY_FORMATS=false` would refuse.")


@router.get("", summary="See which keys are in use", response_model=EncryptionStatus, responses=answers(*STORE))
async def status(caller: Admin, vault: Vault) -> Response:
    """Count the tokens by scheme, and those that a stricter setting would refuse. Needs `tokens:admin` and a key that
    is not limited to some providers.
    """
    caller.require_every_provider()
    return json_answer(_body(await vault.census()))


def _body(census: Census) -> EncryptionStatus:
    return EncryptionStatus(
        primary_scheme=census.primary_scheme,
        tokens=census.rows,
        due=census.due,
        unknown=census.unknown,
        schemes=[
            SchemeCount(scheme=line.scheme, materials=list(line.materials), tokens=line.rows) for line in census.lines
        ],
        key_versions=[
            KeyVersionCount(version=version, tokens=rows, refused_above=census.below_version(version + 1))
            for version, rows in census.versions.items()
        ],
        refused_without_legacy_formats=census.legacy,
    )
