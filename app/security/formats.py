"""Ciphertext families, recognised by the form of the text alone.

The form decides which reader may open a text; no keys are tried in turn. A text without a known form is refused before
any key is used. docs/ciphertext-formats.md has the bytes of each family.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Final

from app.errors import MalformedCiphertext

# A token has at most 16 384 characters, so 65 536 bytes of UTF-8; hex doubles them.
MAXIMUM_CIPHERTEXT_CHARACTERS: Final = 160 * 1024

# Versions have no leading zero and hex is lower case, as every writer wrote them: one ciphertext, one spelling.
_LOCAL = re.compile(r"v[1-9][0-9]{0,8}:[A-Za-z0-9_-]+", re.ASCII)
_PULSEPLAN_LOCAL = re.compile(r"(?:v[1-9][0-9]{0,8}:)?[0-9a-f]+:[0-9a-f]+:[0-9a-f]+", re.ASCII)
_KMS_PREFIX = "kms:"
_KMS_AS_WRITTEN = 'kms:{"fmt":1,'  # only a package with other spacing or order has to be parsed
_OTHER_JSON = "pulseplan-kms"  # the name that migration 0003 gives it; no reader opens it


class Family(StrEnum):
    __hash__ = str.__hash__  # Enum's is a function in Python, and each decryption looks for its reader

    LOCAL = "local"
    KMS = "kms"
    PULSEPLAN_LOCAL = "pulseplan-local"


def material_of(ciphertext: str) -> str:
    """Name the key material that a ciphertext seems to need, for counting rows.

    The result is `local:v2`, `pulseplan-local:v1`, `kms`, `pulseplan-kms` (any other JSON object) or `unknown`. Equal
    to the SQL of migration 0003, so nothing is parsed.
    """
    version = ciphertext.partition(":")[0]
    if _LOCAL.fullmatch(ciphertext):
        return f"{Family.LOCAL}:{version}"
    if _PULSEPLAN_LOCAL.fullmatch(ciphertext):
        return f"{Family.PULSEPLAN_LOCAL}:{version if version.startswith('v') else 'v1'}"
    if ciphertext.startswith(_KMS_AS_WRITTEN):
        return Family.KMS
    if ciphertext.removeprefix(_KMS_PREFIX).startswith("{"):
        return _OTHER_JSON
    return "unknown"


def legacy_spelling(ciphertext: str) -> str | None:
    """Return a ciphertext of PulsePlan's formats without its key version; `None` for any other text.

    For comparing: `v1:{iv}:{tag}:{ciphertext}` and `{iv}:{tag}:{ciphertext}` are the same ciphertext.
    """
    if not _PULSEPLAN_LOCAL.fullmatch(ciphertext):
        return None
    return ciphertext.partition(":")[2] if ciphertext.startswith("v") else ciphertext


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
    if ciphertext.startswith(_KMS_PREFIX) and _is_kms_package(ciphertext.removeprefix(_KMS_PREFIX)):
        return Family.KMS
    raise MalformedCiphertext("the text is of no known ciphertext format")


def families_of(*ciphertexts: str | None) -> tuple[Family, ...]:
    """Return the families of ciphertexts that have opened, each once."""
    return tuple(dict.fromkeys([_family_of_valid(ciphertext) for ciphertext in ciphertexts if ciphertext is not None]))


def _family_of_valid(ciphertext: str) -> Family:
    """Tell apart the forms that `family_of` accepts, without matching the whole text again."""
    if ciphertext.startswith(_KMS_PREFIX):
        return Family.KMS
    return Family.LOCAL if ciphertext.count(":") == 1 else Family.PULSEPLAN_LOCAL


def _is_kms_package(text: str) -> bool:
    try:
        package = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(package, dict) and type(package.get("fmt")) is int and package["fmt"] == 1
