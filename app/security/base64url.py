"""Unpadded base64url (RFC 4648 §5) that accepts one spelling of the same bytes only."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from app.errors import MalformedCiphertext

# binascii reads RFC 4648 §4 only; its own "+", "/" and "=" become a character that it skips
_TO_STANDARD: Final = bytes.maketrans(b"-_+/=", b"+/!!!")


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the bytes; raises `MalformedCiphertext` unless encoding them again gives the same text.

    Python's decoder skips foreign characters and ignores the spare bits of the last character, so without the check a
    ciphertext with such a flipped bit would still open.
    """
    padded = text.encode(errors="replace").translate(_TO_STANDARD) + b"=" * (-len(text) % 4)
    try:
        data = binascii.a2b_base64(padded)
    except binascii.Error:
        data = b""
    if binascii.b2a_base64(data, newline=False) != padded:
        raise MalformedCiphertext("the ciphertext is not canonical base64url")
    return data
