"""Headers of every response: a browser must not render, embed, guess the type of, or keep it."""

from __future__ import annotations

from typing import Final

Headers = tuple[tuple[bytes, bytes], ...]

SECURITY_HEADERS: Final[Headers] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# only if TLS ends in the vault; behind a proxy, the proxy decides
OVER_TLS: Final[Headers] = (*SECURITY_HEADERS, (b"strict-transport-security", b"max-age=31536000"))
