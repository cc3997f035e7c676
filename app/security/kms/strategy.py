"""KMS envelope encryption: AES-256-GCM under data keys that AWS KMS generates and wraps."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from app.errors import IntegrityError, InvalidRequest, KeyUnavailable
from app.security.aead import CommittingAead
from app.security.context import LABEL, TokenContext, length_prefixed
from app.security.formats import Family
from app.security.kms.client import DEADLINE_SECONDS
from app.security.kms.data_key_cache import REMEMBERED_NAMES, DataKey, DataKeyCache, fingerprint
from app.security.kms.package import MAXIMUM_NAME_CHARACTERS, Package, complete, head
from app.security.strategy import KeyNotCached, Sealed
from app.single_flight import SingleFlight

if TYPE_CHECKING:
    from app.security.kms.client import KmsClient


_FAMILY: Final = b"kms/1"
_INFO: Final = length_prefixed(LABEL, _FAMILY)
_TRACKING_BYTES: Final = 8


class KmsEnvelopeStrategy:
    """The KMS envelope format; `app.security.kms.package` has its text.

    A data key belongs to one user, one provider and one KMS key. It seals until `data_keys`' limits and is unwrapped
    once for reading within them, so that KMS is asked about once for hundreds of operations. What KMS binds (user,
    service, data type) and what the AAD binds (those, provider, service type, column, key ARN, tracking id) holds
    for each single ciphertext all the same.
    """

    family: Final = Family.KMS

    def __init__(
        self, *, kms: KmsClient, data_keys: DataKeyCache, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._kms = kms
        self._data_keys = data_keys
        self._monotonic = monotonic
        self._generating: SingleFlight[None] = SingleFlight()
        self._unwrapping: SingleFlight[tuple[CommittingAead, float | None]] = SingleFlight()

    @property
    def scheme(self) -> str | None:
        return None if self._kms.key_arn is None else f"kms:{self._kms.key_arn}"

    def scheme_of(self, ciphertext: str) -> str:
        return f"kms:{Package.decode(ciphertext).key_arn}"

    def seal(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        key = self._sealing_key(context, wait=wait)
        box = key.aead.seal(plaintext.encode(), _aad(context, key.key_arn, key.tracking_id))
        return Sealed(
            ciphertext=complete(key.head, box),
            scheme=f"kms:{key.key_arn}",
            method="kms",
            key_id=key.tracking_id,
        )

    def open(self, ciphertext: str, context: TokenContext, *, wait: bool = True) -> str:
        package = Package.decode(ciphertext)
        if not _is_tracking_id(package.tracking_id, context):
            # it could not authenticate, so KMS need not be asked
            raise IntegrityError("the KMS package was made for another user or provider")
        name = fingerprint(package.wrapped, context)
        aead = self._data_keys.for_opening(name, counts_miss=wait)
        if aead is not None:
            return _text(_open(aead, package, context))
        if not wait:
            raise KeyNotCached(name)
        aead, ends_at = self._unwrapping.run(name, lambda: self._unwrap(name, package, context))
        plaintext = _open(aead, package, context)
        if ends_at is not None:  # again, for whoever made the request may have had a broken package to try the key on
            self._data_keys.keep_for_opening(name, aead, ends_at=ends_at)
        return _text(plaintext)

    def _sealing_key(self, context: TokenContext, *, wait: bool) -> DataKey:
        owner = (context.user_id, context.provider)
        made: DataKey | None = None

        def make() -> None:
            nonlocal made
            # another caller's request may have ended since we looked
            made = self._kept_sealing_key(owner, counts_miss=False) or self._generate(owner, context)

        give_up_at = self._monotonic() + DEADLINE_SECONDS
        while self._monotonic() < give_up_at:
            key = self._kept_sealing_key(owner, counts_miss=wait)
            if key is not None:
                return key
            if not wait:
                raise KeyNotCached(owner)
            self._generating.run(owner, make)
            if made is not None:
                return made
        raise KeyUnavailable("others used up each new data key first")

    def _kept_sealing_key(self, owner: tuple[str, str], *, counts_miss: bool) -> DataKey | None:
        key = self._data_keys.for_sealing(owner, counts_miss=counts_miss)
        # where an alias has moved, what the last key seals would be due for a rewrap at once
        return key if key is not None and key.key_arn == self._kms.key_arn else None

    def _generate(self, owner: tuple[str, str], context: TokenContext) -> DataKey:
        """Return a new data key that has counted its caller's message."""
        tracking_id = _tracking_prefix(context) + secrets.token_hex(_TRACKING_BYTES)
        if len(tracking_id) > MAXIMUM_NAME_CHARACTERS:
            raise InvalidRequest("the user id is too long: its ciphertexts could not be read back")
        ends_at = self._data_keys.end_of_one_asked_for_now()
        generated = self._kms.generate_data_key(context.encryption_context())
        aead = CommittingAead(generated.plaintext, info=_INFO)
        common = head(generated.key_arn, tracking_id, generated.wrapped, aead.commitment)
        key = DataKey(owner, aead, common, generated.key_arn, tracking_id, messages=1)
        self._data_keys.keep_for_sealing(key, ends_at=ends_at)
        self._data_keys.keep_for_opening(fingerprint(generated.wrapped, context), aead, ends_at=ends_at)
        return key

    def _unwrap(self, name: bytes, package: Package, context: TokenContext) -> tuple[CommittingAead, float | None]:
        """Return the key, and when it has to be dropped, `None` where it is kept already."""
        kept = self._data_keys.for_opening(name, counts_miss=False)
        if kept is not None:  # another caller's request has ended since we looked
            return kept, None
        ends_at = self._data_keys.end_of_one_asked_for_now()
        secret = self._kms.unwrap_data_key(package.wrapped, context.encryption_context(), key_arn=package.key_arn)
        aead = CommittingAead(secret, info=_INFO)
        try:
            _open(aead, package, context)
        except IntegrityError:
            return aead, ends_at  # a key that has authenticated nothing has no place in the cache
        self._data_keys.keep_for_opening(name, aead, ends_at=ends_at)
        return aead, ends_at


def _tracking_prefix(context: TokenContext) -> str:
    return f"{context.provider}_kms_{context.user_id}_"


def _is_tracking_id(tracking_id: str, context: TokenContext) -> bool:
    prefix = _tracking_prefix(context)
    return len(tracking_id) == len(prefix) + 2 * _TRACKING_BYTES and tracking_id.startswith(prefix)


def _open(aead: CommittingAead, package: Package, context: TokenContext) -> bytes:
    return aead.open(package.box, _aad(context, package.key_arn, package.tracking_id))


@lru_cache(maxsize=REMEMBERED_NAMES)  # the same for every message of one data key in one column
def _aad(context: TokenContext, key_arn: str, tracking_id: str) -> bytes:
    return context.aad(_FAMILY, key_arn.encode(), tracking_id.encode())


def _text(plaintext: bytes) -> str:
    try:
        return plaintext.decode()
    except UnicodeDecodeError:
        raise IntegrityError("the plaintext is not text") from None
