"""The scheme of a ciphertext, read from its text: how it was made, and the name of the key that it needs."""

from __future__ import annotations

from app.security.formats import Family, family_of
from app.security.kms.package_format import Package


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
