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
DOCS_PATH: Final = "/docs"  # the page of the API, whose style sheet lies below it
_DOCS_POLICY: Final = (
    b"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# only if TLS ends in the vault; behind a proxy, the proxy decides
OVER_TLS: Final[Headers] = (*SECURITY_HEADERS, (b"strict-transport-security", b"max-age=31536000"))


def of_docs_page(headers: Headers) -> Headers:
    """Return the headers with a policy that lets a page load the vault's own style sheet, and nothing else."""
    return tuple((name, _DOCS_POLICY if name == b"content-security-policy" else value) for name, value in headers)
