"""The download of a JSON Web Key Set, bounded in time and size."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import httpx

from app.callers.jwks import MAXIMUM_BYTES, KeySetError

SECONDS: Final = 3.0
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}  # a compressed answer has no bound


async def download_key_set(url: str, tls: ssl.SSLContext) -> bytes:
    """Return the document at this URL, or raise `KeySetError`. Follows no redirect and uses no proxy."""
    try:
        async with (
            asyncio.timeout(SECONDS),
            httpx.AsyncClient(verify=tls, trust_env=False, headers=_HEADERS, timeout=SECONDS) as client,
            client.stream("GET", url) as answer,
        ):
            return await _body(answer)
    except (TimeoutError, httpx.TimeoutException):
        raise KeySetError("USER_JWT_JWKS_URL does not answer in time") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError):
        raise KeySetError("USER_JWT_JWKS_URL cannot be reached") from None


async def _body(answer: httpx.Response) -> bytes:
    if answer.status_code != httpx.codes.OK:
        raise KeySetError(f"USER_JWT_JWKS_URL answers with status {answer.status_code}")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise KeySetError("USER_JWT_JWKS_URL answers with a compressed document")
    body = bytearray()
    async for piece in answer.aiter_raw():
        body += piece
        if len(body) > MAXIMUM_BYTES:
            raise KeySetError(f"USER_JWT_JWKS_URL answers with more than {MAXIMUM_BYTES // 1024} KiB")
    return bytes(body)
