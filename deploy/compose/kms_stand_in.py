# ruff: noqa: INP001  a script outside of any package
"""A stand-in for AWS KMS with one key that outlives it. For trials: it checks no credential, and moto is no HSM.

moto keeps its keys in memory. The material of this one comes from KMS_STAND_IN_SEED (32 bytes in base64) and its ID is
fixed, so that what it wrapped opens after a restart. Takes the options of `moto_server`, such as `--host` and `--port`.
"""

from __future__ import annotations

import base64
import os
import sys
from typing import Final

ACCOUNT: Final = "123456789012"  # moto's own
REGION: Final = "eu-west-1"
KEY_ID: Final = "11111111-2222-4333-8444-555555555555"
ALIAS: Final = "alias/pulseplan-token-vault"
_SEED_BYTES: Final = 32


def seed() -> bytes:
    """Return the material of the key."""
    try:
        material = base64.b64decode(os.environ.get("KMS_STAND_IN_SEED", ""), validate=True)
    except ValueError:
        material = b""
    if len(material) != _SEED_BYTES:
        sys.exit("Error: KMS_STAND_IN_SEED must be 32 random bytes in base64")
    return material


def create_key(material: bytes) -> None:
    """Give moto the key and its alias."""
    from moto.kms.models import kms_backends  # noqa: PLC0415  slow, and of no use without a seed

    backend = kms_backends[ACCOUNT][REGION]
    key = backend.create_key(None, "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", "PulsePlan's tokens", None)
    del backend.keys[key.id]
    key.arn = key.arn.replace(key.id, KEY_ID)
    key.id, key.key_material, key.key_rotation_status = KEY_ID, material, True
    backend.keys[KEY_ID] = key
    backend.create_alias(KEY_ID, ALIAS)


if __name__ == "__main__":
    create_key(seed())
    from moto.server import main

    main()
