"""Queries to PostgREST and the meaning of its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
import httpx
from postgrest import AsyncRPCFilterRequestBuilder
from postgrest._async.request_builder import AsyncQueryRequestBuilder as Query
from postgrest.exceptions import APIError

from app.errors import InvalidRequest, StoreError, StoreMisconfigured, StoreTimeout, StoreUnavailable

# PostgREST's errors quote rows, SQL and hints, so none of their text is passed on or logged: only the code is read.
# <https://docs.postgrest.org/en/v12/references/errors.html>

_DOWN = "the token store is down or cannot be reached"
_SLOW = "the token store did not answer in time"
_KEY = "the token store refuses SUPABASE_SERVICE_KEY: it is wrong, expired or not the service role's"
_URL = "SUPABASE_URL does not lead to a project's table API"
_SCHEMA = "oauth_tokens lacks a column, a constraint or a function that the vault needs; run migrations/"
_READ_ONLY = "the token store is read-only at the moment"

# By code, or by the code's first two characters where a whole SQLSTATE class means the same. Every code here comes
# from a statement that was rolled back or never ran.
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
_NO_SUCH_USER: Final = "23503"


class UnknownOutcomeError(Exception):
    """A write may or may not have been committed. `store_error` is what to say where that cannot be found out."""

    def __init__(self, store_error: StoreError) -> None:
        super().__init__()
        self.store_error = store_error


async def require_postgrest_answer(response: httpx.Response) -> None:
    """Let through what PostgREST itself says; raise for what a gateway says in its place.

    An `APIError` has no HTTP status, and a 2xx page of HTML would become data, so this looks at each response before
    the client does.
    """
    await response.aread()
    says_json = "json" in response.headers.get("content-type", "")
    if says_json and response.content and (response.is_success or b'"code"' in response.content):
        return
    if response.status_code in {401, 403}:
        raise StoreMisconfigured(_KEY)
    if response.status_code == httpx.codes.NOT_FOUND:
        raise StoreMisconfigured(_URL)
    if response.status_code == httpx.codes.GATEWAY_TIMEOUT:
        raise UnknownOutcomeError(StoreTimeout(_SLOW))
    raise UnknownOutcomeError(StoreUnavailable(_DOWN))


@contextmanager
def translating_postgrest_errors() -> Iterator[None]:
    """Turn the client's exceptions into the vault's, or into `UnknownOutcomeError` where a write may have happened."""
    try:
        yield
    except APIError as error:
        raise _meaning(str(error.code)) from None
    except httpx.RequestError as error:
        raise _meaning_of_transport(error) from None
    except (aiohttp.ClientError, OSError, ValueError, RecursionError):  # what the client makes of nonsense answers
        raise UnknownOutcomeError(StoreUnavailable(_DOWN)) from None


def _meaning(code: str) -> Exception:
    if code == _NO_SUCH_USER:
        return InvalidRequest.of_field("user_id", "the user does not exist")
    kind, message = _BY_CODE.get(code) or _BY_CODE.get(code[:2]) or (None, "")
    return UnknownOutcomeError(StoreUnavailable(_DOWN)) if kind is None else kind(message)


def _meaning_of_transport(error: httpx.RequestError) -> Exception:
    cause = error.__cause__  # the adapter calls several of aiohttp's errors a time-out that are none
    if isinstance(cause, aiohttp.ClientConnectorError):
        return StoreUnavailable(_DOWN)  # nothing was sent
    if isinstance(cause, asyncio.TimeoutError) or (cause is None and isinstance(error, httpx.TimeoutException)):
        return UnknownOutcomeError(StoreTimeout(_SLOW))
    return UnknownOutcomeError(StoreUnavailable(_DOWN))


# --- A query to PostgREST, sent once, and rows in its answer or an error.

STRANGE: Final = "the token store answered with something that is not rows"


async def write(query: Query) -> list[dict[str, Any]]:
    """Send a query that changes something; raises `UnknownOutcomeError` where nobody knows whether it has."""
    rows, _ = await _sent(query)
    return rows


async def read(query: Query) -> tuple[list[dict[str, Any]], int | None]:
    """Return the query's rows and, where one was asked for, their count beyond any cap."""
    with _outcome_does_not_matter():
        return await _sent(query)


async def call(function: AsyncRPCFilterRequestBuilder) -> Any:  # noqa: ANN401  whatever JSON came
    """Return what a function answers that changes nothing, or may be called again."""
    with _outcome_does_not_matter(), translating_postgrest_errors():
        answer = await function.execute()
    return answer.data


async def _sent(query: Query) -> tuple[list[dict[str, Any]], int | None]:
    with translating_postgrest_errors():
        answer = await query.execute()
    rows: Any = answer.data
    # the client hands on whatever JSON came
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnknownOutcomeError(StoreUnavailable(STRANGE))
    return rows, answer.count


@contextmanager
def _outcome_does_not_matter() -> Iterator[None]:
    """Report a read whose outcome is unknown as what kept its answer away."""
    try:
        yield
    except UnknownOutcomeError as unknown:
        raise unknown.store_error from None
