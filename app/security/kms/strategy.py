"""Envelope encryption: AES-256-GCM under data keys that a key service generates and wraps."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from app.errors import IntegrityError, InvalidRequest, KeyUnavailable
from app.security.aead import CommittingAead
from app.security.context import LABEL, TokenContext, length_prefixed
from app.security.formats import Family
from app.security.kms.data_key_cache import REMEMBERED_NAMES, DataKey, DataKeyCache, fingerprint
from app.security.kms.key_service import KeyService
from app.security.kms.package_format import MAXIMUM_NAME_CHARACTERS, Package, complete, head
from app.security.strategy import KeyNotCached, Sealed, SealingKey, require_claim
from app.single_flight import ThreadSingleFlight

SEALING_SECONDS: Final = 2.5
_FAMILY: Final = b"kms/1"
_INFO: Final = length_prefixed(LABEL, _FAMILY)
_TRACKING_BYTES: Final = 8
_LONGEST_REMEMBERED_URL: Final = 2_048  # a row may hold a longer one, and many of those would fill the memory


class KmsEnvelopeStrategy:
    """The KMS envelope format; `app.security.kms.package_format` has its text.

    A data key belongs to one user, one provider and one KMS key. It encrypts until it reaches the limits of
    `data_keys`, and is unwrapped once for decryption within them, so one request serves hundreds of operations. Every
    single ciphertext is bound all the same: KMS authenticates user, service and data type; the AAD authenticates user,
    provider, service type, column, base URL, key ARN and tracking id.
    """

    family: Final = Family.KMS

    def __init__(
        self, *, key_service: KeyService, data_keys: DataKeyCache, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._key_service = key_service
        self._data_keys = data_keys
        self._monotonic = monotonic
        self._generating: ThreadSingleFlight[None] = ThreadSingleFlight()
        self._unwrapping: ThreadSingleFlight[tuple[CommittingAead, float | None]] = ThreadSingleFlight()

    @property
    def scheme(self) -> str | None:
        return None if self._key_service.key_name is None else f"kms:{self._key_service.key_name}"

    def seal(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        return _ReservedKey(self._sealing_key(context, wait=wait)).seal(plaintext, context)

    def reserve(self, context: TokenContext, *, wait: bool = True) -> SealingKey:
        key = self._sealing_key(context, wait=wait)
        key.messages += 1  # of the token's second secret
        return _ReservedKey(key)

    def open(self, ciphertext: str, context: TokenContext, *, claimed: str | None = None, wait: bool = True) -> str:
        package = Package.decode(ciphertext)
        require_claim(claimed, f"kms:{package.key_name}")
        if not _is_tracking_id(package.tracking_id, context):
            # it could not authenticate, so no request is needed
            raise IntegrityError("the KMS package was made for another user or provider")
        name = fingerprint(package.wrapped, context)
        aead = self._data_keys.for_opening(name, counts_miss=wait)
        if aead is not None:
            return _text(_open(aead, package, context))
        if not wait:
            raise KeyNotCached(name)
        aead, expires_at = self._unwrapping.run(name, lambda: self._unwrap(name, package, context))
        plaintext = _open(aead, package, context)
        if expires_at is not None:  # the caller that made the request may have had a broken package, and kept nothing
            self._data_keys.keep_for_opening(name, aead, expires_at=expires_at)
        return _text(plaintext)

    def _sealing_key(self, context: TokenContext, *, wait: bool) -> DataKey:
        owner = (context.user_id, context.provider)
        made: DataKey | None = None

        def make() -> None:
            nonlocal made
            # another caller's request may have ended since the lookup
            made = self._cached_sealing_key(owner, counts_miss=False) or self._generate(owner, context)

        give_up_at = self._monotonic() + SEALING_SECONDS
        while self._monotonic() < give_up_at:
            key = self._cached_sealing_key(owner, counts_miss=wait)
            if key is not None:
                return key
            if not wait:
                raise KeyNotCached(owner)
            self._generating.run(owner, make)
            if made is not None:
                return made
        raise KeyUnavailable("other callers used up each new data key first")

    def _cached_sealing_key(self, owner: tuple[str, str], *, counts_miss: bool) -> DataKey | None:
        key = self._data_keys.for_sealing(owner, counts_miss=counts_miss)
        # after an alias has moved, a ciphertext under the old key would be due for a rewrap at once
        return key if key is not None and key.key_name == self._key_service.key_name else None

    def _generate(self, owner: tuple[str, str], context: TokenContext) -> DataKey:
        """Return a new data key with its first message counted."""
        tracking_id = _tracking_prefix(context) + secrets.token_hex(_TRACKING_BYTES)
        if len(tracking_id) > MAXIMUM_NAME_CHARACTERS:
            raise InvalidRequest("the user id is too long: its ciphertexts could not be read back")
        expires_at = self._data_keys.expiry_of_new_key()
        generated = self._key_service.generate_data_key(context.encryption_context())
        aead = CommittingAead(generated.plaintext, info=_INFO)
        common = head(generated.key_name, tracking_id, generated.wrapped, aead.commitment)
        key = DataKey(owner, aead, common, generated.key_name, tracking_id, messages=1)
        self._data_keys.keep_for_sealing(key, expires_at=expires_at)
        self._data_keys.keep_for_opening(fingerprint(generated.wrapped, context), aead, expires_at=expires_at)
        return key

    def _unwrap(self, name: bytes, package: Package, context: TokenContext) -> tuple[CommittingAead, float | None]:
        """Return the key and when it expires; `None` if it is in the cache already."""
        cached = self._data_keys.for_opening(name, counts_miss=False)
        if cached is not None:  # another caller's request has ended since the lookup
            return cached, None
        expires_at = self._data_keys.expiry_of_new_key()
        secret = self._key_service.unwrap_data_key(
            package.wrapped, context.encryption_context(), key_name=package.key_name
        )
        aead = CommittingAead(secret, info=_INFO)
        try:
            _open(aead, package, context)
        except IntegrityError:
            return aead, expires_at  # a key that has authenticated nothing does not enter the cache
        self._data_keys.keep_for_opening(name, aead, expires_at=expires_at)
        return aead, expires_at


@dataclass(frozen=True, slots=True)
class _ReservedKey:
    """A data key whose messages are counted already; a reservation may outlive its age by a request to a provider."""

    key: DataKey

    def seal(self, plaintext: str, context: TokenContext) -> Sealed:
        key = self.key
        if key.owner != (context.user_id, context.provider):
            raise ValueError("the data key belongs to another user or provider")
        box = key.aead.seal(plaintext.encode(), _aad(context, key.key_name, key.tracking_id))
        return Sealed(
            ciphertext=complete(key.head, box),
            scheme=f"kms:{key.key_name}",
            method="kms",
            key_id=key.tracking_id,
        )


def _tracking_prefix(context: TokenContext) -> str:
    return f"{context.provider}_kms_{context.user_id}_"


def _is_tracking_id(tracking_id: str, context: TokenContext) -> bool:
    prefix = _tracking_prefix(context)
    return len(tracking_id) == len(prefix) + 2 * _TRACKING_BYTES and tracking_id.startswith(prefix)


def _open(aead: CommittingAead, package: Package, context: TokenContext) -> bytes:
    return aead.open(package.box, _aad(context, package.key_name, package.tracking_id))


def _aad(context: TokenContext, key_name: str, tracking_id: str) -> bytes:
    if len(context.base_url) > _LONGEST_REMEMBERED_URL:
        return _new_aad(context, key_name, tracking_id)
    return _remembered_aad(context, key_name, tracking_id)


def _new_aad(context: TokenContext, key_name: str, tracking_id: str) -> bytes:
    return context.aad(_FAMILY, key_name.encode(), tracking_id.encode())


_remembered_aad = lru_cache(maxsize=REMEMBERED_NAMES)(_new_aad)  # equal for all messages of one data key in one column


def _text(plaintext: bytes) -> str:
    try:
        return plaintext.decode()
    except UnicodeDecodeError:
        raise IntegrityError("the plaintext is not text") from None
