"""The scheme of a ciphertext, read from its text: how it was made, and the name of the key that it needs."""

from __future__ import annotations

import re
from typing import Final

from app.security.formats import Family, family_of
from app.security.kms.package_format import Package

MAXIMUM_SCHEME_CHARACTERS: Final = 512  # a key's ARN has fewer than 300
_WRITTEN: Final = re.compile(r"local:v[1-9][0-9]*|kms:[!-~]+")
_SENDABLE: Final = re.compile(r"[ -~]*")


def is_written(scheme: str) -> bool:
    """Return whether the vault may have given a row this scheme."""
    return len(scheme) <= MAXIMUM_SCHEME_CHARACTERS and _WRITTEN.fullmatch(scheme) is not None


def is_comparable(scheme: str) -> bool:
    """Return whether a condition on a row may contain this text, which becomes a part of a URL in some stores."""
    return len(scheme) <= MAXIMUM_SCHEME_CHARACTERS and _SENDABLE.fullmatch(scheme) is not None


def scheme_of(ciphertext: str) -> str:
    """Return `local:v2`, `pulseplan-local:v1` or `kms:<key ARN>`; raise `MalformedCiphertext`.

    Nothing is decrypted, and the key need not be configured. A text that decrypts is of this scheme: its AAD or its key
    has the version or the ARN.
    """
    family = family_of(ciphertext)
    if family is Family.KMS:
        return f"{family}:{Package.decode(ciphertext).key_name}"
    version = ciphertext.partition(":")[0]
    return f"{family}:{version if version.startswith('v') else 'v1'}"
