"""The encryption service: the primary (or its fallback) encrypts, every configured reader decrypts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from app.errors import EncryptionError, InternalError, InvalidRequest, KeyDenied, KeyUnavailable
from app.security.context import SecretField, TokenContext
from app.security.counters import EncryptionCounters
from app.security.formats import MAXIMUM_CIPHERTEXT_CHARACTERS, Family, family_of
from app.security.strategy import EncryptionReader, EncryptionStrategy, Sealed, SealingKey, require_claim

_log = structlog.get_logger()
_NOT_UTF8 = "text with lone surrogates cannot be encrypted"
_WHY_UNREADABLE = {
    Family.LOCAL: "no master key is configured for local ciphertexts",
    Family.KMS: "KMS is not configured, and this ciphertext needs it",
    Family.PULSEPLAN_LOCAL: "PulsePlan's local formats are switched off, or no master key is configured",
}


class EncryptionService:
    """Encrypts with the primary strategy and decrypts with the reader of the ciphertext's family.

    Synchronous and safe from several threads. `app.tokens.cipher` calls it from the event loop, scripts directly.
    """

    def __init__(
        self,
        *,
        primary: EncryptionStrategy,
        readers: Iterable[EncryptionReader] = (),
        fallback: EncryptionStrategy | None = None,
        counters: EncryptionCounters,
    ) -> None:
        self._primary = primary
        self._fallback = fallback
        self._counters = counters
        self._readers: dict[Family, EncryptionReader] = {primary.family: primary}
        for reader in readers:
            if self._readers.setdefault(reader.family, reader) is not reader:
                raise ValueError(f"two readers for the family {reader.family}")

    @property
    def primary_scheme(self) -> str | None:
        """The primary's scheme; `None` until KMS has answered with the ARN of its key."""
        return self._primary.scheme

    @property
    def has_fallback(self) -> bool:
        """Whether tokens are encrypted locally while the primary's key service is unavailable."""
        return self._fallback is not None

    def seal(self, plaintext: str, context: TokenContext) -> Sealed:
        """Encrypt under the primary, or under the fallback if one is configured and the key service is unavailable.

        Raises an `EncryptionError`, and `InvalidRequest` for text that is not UTF-8 or too long.
        """
        try:
            return self.seal_as_primary(plaintext, context)
        except KeyUnavailable as error:
            if not self.has_fallback:
                raise
            sealed = self.seal_as_fallback(plaintext, context)
            self.note_fallback(error)
            return sealed

    def seal_as_primary(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        """Encrypt under the primary; if `wait` is false, raise `KeyNotCached` instead of waiting for a key."""
        return self._seal(self._primary, plaintext, context, wait=wait)

    def seal_as_fallback(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        """Encrypt under the fallback. The caller must call `note_fallback` once per token."""
        if self._fallback is None:
            raise InternalError("no fallback is configured")
        return self._seal(self._fallback, plaintext, context, wait=wait)._replace(fallback=True)

    def reserve_as_primary(self, context: TokenContext, *, wait: bool = True) -> SealingKey:
        """Return a key of the primary for a token whose secrets are not known yet; raises as `seal_as_primary` does."""
        return _CheckedKey(self._primary.reserve(context, wait=wait), fallback=False)

    def reserve_as_fallback(self, context: TokenContext, *, wait: bool = True) -> SealingKey:
        """Return a key of the fallback. The caller must call `note_fallback` once per token."""
        if self._fallback is None:
            raise InternalError("no fallback is configured")
        return _CheckedKey(self._fallback.reserve(context, wait=wait), fallback=True)

    def note_fallback(self, reason: KeyUnavailable) -> None:
        """Count and log that one token was encrypted by the fallback, which is never silent."""
        self._counters.fallback_write()
        _log.warning("sealed_by_fallback", reason=reason.detail)

    def _seal(self, strategy: EncryptionStrategy, plaintext: str, context: TokenContext, *, wait: bool) -> Sealed:
        _require_unicode(plaintext, context.user_id, context.provider, context.service_type)
        return _readable(strategy.seal(plaintext, context, wait=wait))

    def open(self, ciphertext: str, context: TokenContext, *, claimed: str | None = None, wait: bool = True) -> str:
        """Decrypt; raises an `EncryptionError`, or `KeyNotCached` if `wait` is false and a key is missing.

        `claimed` is the scheme that the row names, `None` if it names none. A ciphertext of another scheme is an
        `IntegrityError`: a row cannot hide which key or format it needs. The vault writes no PulsePlan format, so one
        under any scheme is an `IntegrityError` too.
        """
        try:
            family = family_of(ciphertext)
            if family is Family.PULSEPLAN_LOCAL:
                require_claim(claimed, None)  # the vault never writes them; also while they are switched off
            return self._reader(family).open(ciphertext, context, claimed=claimed, wait=wait)
        except EncryptionError as error:
            self._counters.decryption_failure(error.code)
            raise
        except UnicodeEncodeError:  # the context has a lone surrogate
            raise InvalidRequest(_NOT_UTF8) from None

    def self_test(self) -> None:
        """Prove that a new ciphertext opens in its context and in no other; raises an `EncryptionError`.

        The fallback comes first, so its key is derived even if the primary is unavailable.
        """
        if self._fallback is not None:
            self._test(self._fallback)
        self._test(self._primary)

    def _test(self, strategy: EncryptionStrategy) -> None:
        here = TokenContext(user_id="self-test", field=SecretField.ACCESS_TOKEN)
        elsewhere = TokenContext(user_id="another-user", field=SecretField.ACCESS_TOKEN)
        ciphertext = strategy.seal("self-test", here).ciphertext
        if self.open(ciphertext, here) != "self-test":
            raise InternalError("the encryption self-test got another plaintext back")
        try:
            self._reader(family_of(ciphertext)).open(ciphertext, elsewhere)  # not counted, because it has to fail
        except EncryptionError:
            return
        raise InternalError("the encryption self-test opened a ciphertext for another user")

    def encrypt_token(
        self,
        token: str,
        user_id: str,
        *,
        provider: str = "",
        service_type: str = "",
        field: SecretField | None = None,
        base_url: str = "",
    ) -> str:
        """Encrypt one token; the keywords bind it further. An empty token stays empty, as PulsePlan expects."""
        if not token:
            return token
        return self.seal(token, TokenContext(user_id, provider, service_type, field, base_url)).ciphertext

    def decrypt_token(
        self,
        ciphertext: str,
        user_id: str,
        *,
        provider: str = "",
        service_type: str = "",
        field: SecretField | None = None,
        base_url: str = "",
    ) -> str:
        """Decrypt a result of `encrypt_token` with the same arguments; raises an `EncryptionError`."""
        if not ciphertext:
            return ciphertext
        return self.open(ciphertext, TokenContext(user_id, provider, service_type, field, base_url))

    def _reader(self, family: Family) -> EncryptionReader:
        reader = self._readers.get(family)
        if reader is None:
            raise KeyDenied(_WHY_UNREADABLE[family])
        return reader


@dataclass(frozen=True, slots=True)
class _CheckedKey:
    """A reserved key behind the checks of `EncryptionService`."""

    key: SealingKey
    fallback: bool

    def seal(self, plaintext: str, context: TokenContext) -> Sealed:
        _require_unicode(plaintext, context.user_id, context.provider, context.service_type)
        return _readable(self.key.seal(plaintext, context))._replace(fallback=self.fallback)


def _readable(sealed: Sealed) -> Sealed:
    if len(sealed.ciphertext) > MAXIMUM_CIPHERTEXT_CHARACTERS:
        raise InvalidRequest("the text is too long: its ciphertext could not be read back")
    return sealed


def _require_unicode(*texts: str) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(_NOT_UTF8) from None
