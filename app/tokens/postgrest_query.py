"""A query to PostgREST, sent once, and rows in its answer or an error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from app.errors import StoreUnavailable
from app.tokens.supabase_errors import UnknownOutcomeError, translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgrest import AsyncRPCFilterRequestBuilder
    from postgrest._async.request_builder import AsyncQueryRequestBuilder as Query

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
    with _outcome_does_not_matter(), translated():
        answer = await function.execute()
    return answer.data


async def _sent(query: Query) -> tuple[list[dict[str, Any]], int | None]:
    with translated():
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
