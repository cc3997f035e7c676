"""Unpadded base64url, RFC 4648 §5, in exactly one spelling."""

from __future__ import annotations

import base64
import binascii

from app.errors import MalformedCiphertext


def encode(data: bytes) -> str:
    """Return the text."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the bytes, or raise `MalformedCiphertext` for every second spelling of the same bytes.

    Python's decoder skips foreign characters and ignores the last character's spare bits; a ciphertext with such a
    flipped bit would still open.
    """
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        data = b""
    if encode(data) != text:
        message = "the ciphertext is not canonical base64url"
        raise MalformedCiphertext(message)
    return data
