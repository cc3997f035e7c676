"""The result of a refresh, as the spool keeps it until its row holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.security.strategy import Sealed
from app.tokens import transitions
from app.tokens.cipher import SealedSecrets
from app.tokens.models import UUID_PATTERN, RefreshAnswer, StoredToken


class SpooledRefresh(BaseModel):
    """What a refresh writes to its row, and the condition: the row's id, and the holder and generation of the lease.

    It names no user and no provider. `intent` is the id of the audit event that preceded the refresh, and
    `spent_ciphertext` with `spent_scheme` the refresh token that the refresh has spent.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    row_id: str
    holder: str = Field(pattern=UUID_PATTERN)
    generation: int
    intent: str | None
    refreshed_at: AwareDatetime
    expires_at: AwareDatetime | None
    refresh_token_expires_at: AwareDatetime | None
    scopes: tuple[str, ...]
    next_refresh_at: AwareDatetime | None
    access_ciphertext: str = Field(repr=False)
    refresh_ciphertext: str | None = Field(repr=False)
    encryption_scheme: str
    encryption_method: str
    kms_key_id: str | None
    encryption_fallback: bool
    spent_ciphertext: str | None = Field(repr=False)
    spent_scheme: str | None

    @classmethod
    def of(cls, claimed: StoredToken, after: StoredToken, *, intent: str | None) -> Self:
        """Return the result of a refresh that holds the lease of `claimed` and ends it with `after`.

        Raises `ValueError` if such a result could not be read back.
        """
        columns = {
            "row_id": claimed.id,
            "holder": claimed.refresh_state.holder,
            "generation": claimed.refresh_state.generation,
            "intent": intent,
            "refreshed_at": after.last_refreshed,
            "expires_at": after.expires_at,
            "refresh_token_expires_at": after.refresh_token_expires_at,
            "scopes": after.scopes,
            "next_refresh_at": after.refresh_state.retry_at,
            "access_ciphertext": after.access_ciphertext,
            "refresh_ciphertext": after.refresh_ciphertext,
            "encryption_scheme": after.encryption_scheme,
            "encryption_method": after.encryption_method,
            "kms_key_id": after.kms_key_id,
            "encryption_fallback": after.encryption_fallback,
            "spent_ciphertext": claimed.refresh_ciphertext,
            "spent_scheme": claimed.encryption_scheme,
        }
        return cls.model_validate(columns)

    def is_condition_of(self, row: StoredToken) -> bool:
        """Whether the row is still under the lease of this refresh, alive or expired."""
        lease = row.refresh_state
        return (row.id, lease.holder, lease.generation) == (self.row_id, self.holder, self.generation)

    def applied_to(self, row: StoredToken) -> StoredToken:
        """Return the row with the new tokens."""
        how = self.encryption_scheme, self.encryption_method, self.kms_key_id, self.encryption_fallback
        refresh = None if self.refresh_ciphertext is None else Sealed(self.refresh_ciphertext, *how)
        answer = RefreshAnswer(
            expires_at=self.expires_at,
            refresh_token_expires_at=self.refresh_token_expires_at,
            scopes=self.scopes,
            next_refresh_at=self.next_refresh_at,
        )
        sealed = SealedSecrets(Sealed(self.access_ciphertext, *how), refresh)
        return transitions.refreshed(row, answer, sealed, now=self.refreshed_at)

    def spent_of(self, row: StoredToken) -> StoredToken:
        """Return the row with the refresh token that was spent."""
        return replace(row, refresh_ciphertext=self.spent_ciphertext, encryption_scheme=self.spent_scheme)
