"""Which family a ciphertext belongs to, told from its shape alone.

Dispatch never tries one key after another: what a text looks like decides who may open it, and a text that looks like
nothing is refused before any key is touched.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum

from app.errors import MalformedCiphertext

# A token has at most 16 384 characters, so 65 536 bytes of UTF-8; hex doubles them.
MAXIMUM_CIPHERTEXT_CHARACTERS = 160 * 1024

# Versions have no leading zero and hex is lower case, as every writer wrote them: one ciphertext, one spelling.
_LOCAL = re.compile(r"v[1-9][0-9]{0,8}:[A-Za-z0-9_-]+", re.ASCII)
_PULSEPLAN_LOCAL = re.compile(r"(?:v[1-9][0-9]{0,8}:)?[0-9a-f]+:[0-9a-f]+:[0-9a-f]+", re.ASCII)
_KMS_PREFIX = "kms:"
_KMS_AS_WRITTEN = 'kms:{"fmt":1,'  # spares the parsing that tells a package written otherwise


class Family(StrEnum):
    """The ciphertext formats that the vault knows; docs/ciphertext-formats.md has their bytes."""

    LOCAL = "local"
    KMS = "kms"
    PULSEPLAN_LOCAL = "pulseplan-local"
    PULSEPLAN_KMS = "pulseplan-kms"


def material_of(ciphertext: str) -> str:
    """Name the key material that a ciphertext looks to need: `local:v2`, `pulseplan-local:v1`, `kms`, `pulseplan-kms`.

    For counting rows, so a look must do: what it calls `pulseplan-kms` may be any JSON. Migration 0003 has the same in
    SQL. What has the shape of no format is `unknown`.
    """
    version = ciphertext.partition(":")[0]
    if _LOCAL.fullmatch(ciphertext):
        return f"{Family.LOCAL}:{version}"
    if _PULSEPLAN_LOCAL.fullmatch(ciphertext):
        return f"{Family.PULSEPLAN_LOCAL}:{version if version.startswith('v') else 'v1'}"
    if ciphertext.startswith(_KMS_AS_WRITTEN):
        return Family.KMS
    if ciphertext.removeprefix(_KMS_PREFIX).startswith("{"):
        return Family.PULSEPLAN_KMS
    return "unknown"


def family_of(ciphertext: str) -> Family:
    """Return the family, or raise `MalformedCiphertext`."""
    if len(ciphertext) > MAXIMUM_CIPHERTEXT_CHARACTERS:
        raise MalformedCiphertext("the ciphertext is longer than any that the vault writes")
    if ciphertext.startswith(_KMS_AS_WRITTEN):
        return Family.KMS
    if _LOCAL.fullmatch(ciphertext):
        return Family.LOCAL
    if _PULSEPLAN_LOCAL.fullmatch(ciphertext):
        return Family.PULSEPLAN_LOCAL
    if ciphertext.startswith((_KMS_PREFIX, "{")):
        family = _family_of_package(ciphertext.removeprefix(_KMS_PREFIX), prefixed=ciphertext.startswith(_KMS_PREFIX))
        if family is not None:
            return family
    raise MalformedCiphertext("the text has the shape of no known ciphertext format")


def _family_of_package(text: str, *, prefixed: bool) -> Family | None:
    try:
        package = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(package, dict):
        return None
    if prefixed and type(package.get("fmt")) is int and package["fmt"] == 1:
        return Family.KMS
    if package.get("algorithm") == "KMS":
        return Family.PULSEPLAN_KMS
    return None
