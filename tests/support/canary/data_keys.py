"""The data keys that the service has had from KMS, as far as rows that are left tell of them."""

from __future__ import annotations

from collections.abc import Iterator

from app.errors import MalformedCiphertext
from app.security.kms.package import Package
from tests.support.canary.searcher import Secret
from tests.support.stack.kms import Kms
from tests.support.stores.stores import Store


def data_keys(store: Store, kms: Kms) -> list[Secret]:
    """Unwrap each data key with which a row is sealed."""
    keys = {
        kms.client().decrypt(
            CiphertextBlob=wrapped,
            KeyId=kms.key_arn,
            EncryptionContext={"user_id": user_id, "service": "pulseplan", "data_type": "auth_token"},
        )["Plaintext"]
        for user_id, wrapped in set(_wrapped(store))
    }
    return [Secret(f"data key {number}", key) for number, key in enumerate(keys)]


def _wrapped(store: Store) -> Iterator[tuple[str, bytes]]:
    for row in store.rows():
        try:
            package = Package.decode(row["access_token"])
        except MalformedCiphertext:  # another format
            continue
        yield row["user_id"], package.wrapped
