"""What every answer says to a browser: there is nothing here to show, to embed, to guess at or to keep."""

from __future__ import annotations

from typing import Final

Headers = tuple[tuple[bytes, bytes], ...]

SECURITY_HEADERS: Final[Headers] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# only where TLS ends here: behind a proxy it is the proxy's to say
OVER_TLS: Final[Headers] = (*SECURITY_HEADERS, (b"strict-transport-security", b"max-age=31536000"))
