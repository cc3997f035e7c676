"""Unpadded base64url, RFC 4648 §5, in exactly one spelling."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from app.errors import MalformedCiphertext

# binascii knows RFC 4648 §4 only; what means something there and nothing here becomes a character that it skips
_TO_STANDARD: Final = bytes.maketrans(b"-_+/=", b"+/!!!")


def encode(data: bytes) -> str:
    """Return the text."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the bytes, or raise `MalformedCiphertext` for every second spelling of the same bytes.

    Python's decoder skips foreign characters and ignores the last character's spare bits; a ciphertext with such a
    flipped bit would still open.
    """
    padded = text.encode(errors="replace").translate(_TO_STANDARD) + b"=" * (-len(text) % 4)
    try:
        data = binascii.a2b_base64(padded)
    except binascii.Error:
        data = b""
    if binascii.b2a_base64(data, newline=False) != padded:
        raise MalformedCiphertext("the ciphertext is not canonical base64url")
    return data
