"""The requests that revoke the secrets of one token, and what their answers prove."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from app.errors import GrantRejected, ProviderUnavailable, RevocationUnsupported, VaultError
from app.refresh.providers import OAuthProvider, Revocation, Rotation
from app.tokens.deletion import Receipt, RevocationOutcome
from app.tokens.models import StoredToken, TokenRow, UnreadableRow

if TYPE_CHECKING:  # imports aiohttp
    from app.refresh.provider_client import ProviderClient, TokenTypeHint

_LOST = "an answer about this token was lost: its provider may have issued tokens that the vault cannot revoke"


@dataclass(frozen=True, slots=True)
class Secrets:
    """Each decrypted secret, or the error of one that does not decrypt; `None` for a refresh token that is missing."""

    access: SecretStr | VaultError
    refresh: SecretStr | VaultError | None


@dataclass(frozen=True, slots=True)
class _Result:
    """The outcome of one secret, with its error unless it is revoked."""

    outcome: RevocationOutcome
    error: VaultError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationRequests:
    """The requests about one row, whose lease is held. With `required` the access token stays if the first one fails.

    `until` is a time on the event loop's clock.
    """

    client: ProviderClient
    provider: OAuthProvider
    row: StoredToken
    secrets: Secrets
    required: bool
    until: float

    async def send(self, *, answer_may_be_lost: bool) -> tuple[Receipt, VaultError | None]:
        """Revoke the refresh token, then the access token; return the outcomes, and the first error.

        If an answer was lost, the provider may have issued successors: then nothing proves that they are revoked.
        """
        access, refresh = self.secrets.access, self.secrets.refresh
        if self.provider.revocation is Revocation.DELETE_WITH_ACCESS_TOKEN:
            accessed = refreshed = await _result(self._end_grant())
        elif refresh is None or refresh == access:  # PulsePlan stored a Canvas token as both
            accessed = refreshed = await _result(self._revoke(access, "access_token"))
        else:
            refreshed = await _result(self._revoke(refresh, "refresh_token"))
            accessed = _Result(RevocationOutcome.FAILED)
            if refreshed.error is None or not self.required:
                accessed = await _result(self._revoke(access, "access_token"))
        if answer_may_be_lost:
            accessed = _of_known_token(accessed)
            refreshed = refreshed if self.provider.rotation is Rotation.NONE else _of_known_token(refreshed)
        receipt = Receipt(accessed.outcome, None if refresh is None else refreshed.outcome)
        return receipt, refreshed.error or accessed.error

    async def _revoke(self, secret: SecretStr | VaultError, hint: TokenTypeHint) -> None:
        if isinstance(secret, VaultError):
            raise secret
        await self.client.revoke(self.provider, token=secret, hint=hint, base_url=self.row.base_url, until=self.until)

    async def _end_grant(self) -> None:
        """Revoke the access token, and the refresh token with it, as Canvas does.

        That needs a valid access token: an expired one is refreshed first, unless that replaces the refresh token.
        """
        access, refresh = self.secrets.access, self.secrets.refresh
        try:
            await self._revoke(access, "access_token")
        except GrantRejected:
            if not isinstance(refresh, SecretStr) or refresh == access or self.provider.rotation is not Rotation.NONE:
                raise
            try:
                fresh = await self.client.refresh(
                    self.provider, refresh_token=refresh, base_url=self.row.base_url, scopes=self.row.scopes
                )
            except GrantRejected:
                return  # the provider knows neither of the two
            await self._revoke(fresh.access_token, "access_token")


def untried(row: TokenRow, outcome: RevocationOutcome = RevocationOutcome.FAILED) -> Receipt:
    """Return the receipt of a token about which nothing was sent."""
    has_refresh_token = isinstance(row, UnreadableRow) or row.refresh_ciphertext is not None
    return Receipt(outcome, outcome if has_refresh_token else None)


def successor_unknown() -> RevocationUnsupported:
    """Return the error of a token that may have successors."""
    return RevocationUnsupported(_LOST)


def _of_known_token(result: _Result) -> _Result:
    """Return the result as one of the row's own secret alone."""
    return result if result.error is not None else _Result(RevocationOutcome.UNKNOWN, successor_unknown())


async def _result(call: Awaitable[None]) -> _Result:
    try:
        await call
    except RevocationUnsupported as error:
        return _Result(RevocationOutcome.UNSUPPORTED, error)
    except ProviderUnavailable as error:
        return _Result(RevocationOutcome.UNKNOWN if error.may_be_spent else RevocationOutcome.FAILED, error)
    except VaultError as error:
        return _Result(RevocationOutcome.FAILED, error)
    return _Result(RevocationOutcome.REVOKED)
