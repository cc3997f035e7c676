"""Requests to PostgREST and the meaning of its errors.

PostgREST's errors quote rows, SQL and hints, so only their code is read; none of their text is passed on or logged.
<https://docs.postgrest.org/en/v12/references/errors.html>
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeGuard

import aiohttp
import httpx
from postgrest import AsyncRPCFilterRequestBuilder
from postgrest._async.request_builder import AsyncQueryRequestBuilder as Query
from postgrest.exceptions import APIError

from app.errors import StoreError, StoreMisconfigured, StoreTimeout, StoreUnavailable
from app.stores.lost_answers import UnknownOutcomeError
from app.stores.references import FOREIGN_KEY_VIOLATIONS, unknown_user

NOT_ROWS: Final = "the token store answered with something that is not rows"
_DOWN: Final = "the token store is down or cannot be reached"
_SLOW: Final = "the token store did not answer in time"
_KEY: Final = "the token store refuses SUPABASE_SERVICE_KEY: it is wrong or expired, or its role may not use the table"
_URL: Final = "SUPABASE_URL does not lead to a project's table API"
_SCHEMA: Final = (
    "oauth_tokens lacks a column, a constraint or a function that the vault needs; run `token-vault migrate`"
)
_TOO_LONG: Final = "a value of the row is too long for a request to the token store; nothing was changed"
_READ_ONLY: Final = "the token store is read-only at the moment"
_TEXT_CODE: Final = re.compile(rb'"code"\s*:\s*"')  # PostgREST's codes are text; a gateway's is the status as a number

# By code, or by its first two characters if a whole SQLSTATE class has one meaning. Every code listed here comes from
# a statement that was rolled back or never ran.
_BY_CODE: Final[dict[str, tuple[type[StoreError], str]]] = {
    "PGRST000": (StoreUnavailable, _DOWN),
    "PGRST001": (StoreUnavailable, _DOWN),
    "PGRST002": (StoreUnavailable, _DOWN),
    "PGRST003": (StoreTimeout, _SLOW),
    "PGRST106": (StoreMisconfigured, _URL),
    "PGRST125": (StoreMisconfigured, _URL),
    "PGRST202": (StoreMisconfigured, _SCHEMA),
    "PGRST204": (StoreMisconfigured, _SCHEMA),
    "PGRST205": (StoreMisconfigured, _SCHEMA),
    "PGRST300": (StoreMisconfigured, _KEY),
    "PGRST301": (StoreMisconfigured, _KEY),
    "PGRST302": (StoreMisconfigured, _KEY),
    "PGRST303": (StoreMisconfigured, _KEY),
    "22": (StoreMisconfigured, _SCHEMA),
    "23": (StoreMisconfigured, _SCHEMA),
    "25006": (StoreUnavailable, _READ_ONLY),
    "42": (StoreMisconfigured, _SCHEMA),
    "42501": (StoreMisconfigured, _KEY),
    "55P03": (StoreTimeout, _SLOW),
    "57014": (StoreTimeout, _SLOW),
}


async def execute_write(query: Query) -> list[dict[str, Any]]:
    """Send a query once and return its rows; raise `UnknownOutcomeError` if it may or may not have been committed."""
    rows, _ = await _send(query)
    return rows


async def execute(query: Query) -> tuple[list[dict[str, Any]], int | None]:
    """Send a query and return its rows and, if it asked for it, the count of all matching rows, which no cap cuts.

    For reads, and for deletions: what a lost answer leaves unknown cannot be read back, so it is a plain `StoreError`.
    """
    with _raising_store_error():
        return await _send(query)


async def call_function(function: AsyncRPCFilterRequestBuilder) -> Any:  # noqa: ANN401  any JSON
    """Return the answer of a function that changes nothing, or that may be called again."""
    with _raising_store_error(), translating_postgrest_errors():
        answer = await function.execute()
    return answer.data


async def require_postgrest_answer(response: httpx.Response) -> None:
    """Raise if a gateway answered in place of PostgREST.

    Runs on each response before the client reads it: the client's `APIError` has no HTTP status, and it would return
    a 2xx page of HTML as data.
    """
    await response.aread()
    is_json = "json" in response.headers.get("content-type", "")
    if is_json and response.content and (response.is_success or _TEXT_CODE.search(response.content)):
        return
    if response.status_code in {401, 403}:
        raise StoreMisconfigured(_KEY)
    if response.status_code == httpx.codes.NOT_FOUND:
        raise StoreMisconfigured(_URL)
    if response.status_code in {httpx.codes.REQUEST_URI_TOO_LONG, httpx.codes.REQUEST_HEADER_FIELDS_TOO_LARGE}:
        raise StoreMisconfigured(_TOO_LONG)
    if response.status_code == httpx.codes.GATEWAY_TIMEOUT:
        raise UnknownOutcomeError(StoreTimeout(_SLOW))
    raise UnknownOutcomeError(StoreUnavailable(_DOWN))


@contextmanager
def translating_postgrest_errors() -> Iterator[None]:
    """Raise the vault's errors in place of the client's, or `UnknownOutcomeError` if a write may have happened."""
    try:
        yield
    except APIError as error:
        raise _meaning_of_code(str(error.code)) from None
    except httpx.InvalidURL:  # nothing was sent
        raise StoreMisconfigured(_TOO_LONG) from None
    except httpx.RequestError as error:
        raise _meaning_of_transport_error(error) from None
    except (aiohttp.ClientError, OSError, ValueError, RecursionError):  # the client failed to parse the answer
        raise UnknownOutcomeError(StoreUnavailable(_DOWN)) from None


async def _send(query: Query) -> tuple[list[dict[str, Any]], int | None]:
    with translating_postgrest_errors():
        answer = await query.execute()
    rows: Any = answer.data
    if not is_rows(rows):
        raise UnknownOutcomeError(StoreUnavailable(NOT_ROWS))
    return rows, answer.count


def is_rows(data: Any) -> TypeGuard[list[dict[str, Any]]]:  # noqa: ANN401  the client returns any JSON as data
    return isinstance(data, list) and all(isinstance(row, dict) for row in data)


@contextmanager
def _raising_store_error() -> Iterator[None]:
    """Raise the plain `StoreError` in place of `UnknownOutcomeError`: a read has no outcome."""
    try:
        yield
    except UnknownOutcomeError as unknown:
        raise unknown.store_error from None


def _meaning_of_code(code: str) -> Exception:
    if code in FOREIGN_KEY_VIOLATIONS:
        return unknown_user()
    error_class, detail = _BY_CODE.get(code) or _BY_CODE.get(code[:2]) or (None, "")
    return UnknownOutcomeError(StoreUnavailable(_DOWN)) if error_class is None else error_class(detail)


def _meaning_of_transport_error(error: httpx.RequestError) -> Exception:
    cause = error.__cause__  # httpx-aiohttp reports several of aiohttp's errors as time-outs that are none
    if isinstance(cause, aiohttp.ClientConnectorError):
        return StoreUnavailable(_DOWN)  # nothing was sent
    if isinstance(cause, asyncio.TimeoutError) or (cause is None and isinstance(error, httpx.TimeoutException)):
        return UnknownOutcomeError(StoreTimeout(_SLOW))
    return UnknownOutcomeError(StoreUnavailable(_DOWN))
