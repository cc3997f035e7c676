"""The SQL of the PostgreSQL store.

Every read returns `in_recovery` beside the row, and one row of nulls if there is none: a pooler may lead to a replica,
which may lack a token that is stored, so its "no row" is no answer. `Connections` checks it.
"""

from __future__ import annotations

from typing import Final

from app.stores.rows import COLUMNS, to_text
from app.tokens.due_tokens import DueBy
from app.tokens.models import TokenFilter, TokenStatus

# as text: a timestamp outside of Python's years, or JSON that does not parse, must not fail the read of other rows
_TIMES: Final = (
    "expires_at",
    "created_at",
    "updated_at",
    "last_refreshed",
    "refresh_token_expires_at",
    "refresh_retry_at",
)
_AS_TEXT: Final = frozenset({"id", "user_id", "metadata", "refresh_holder", *_TIMES})
_TYPES: Final = {
    "id": "$::uuid",
    "user_id": "$::uuid",
    "scopes": "$::text[]",
    "metadata": "$::text::jsonb",
    "is_active": "$::boolean",
    "version": "$::bigint",
    "refresh_generation": "$::bigint",
    "refresh_holder": "$::uuid",
    "refresh_attempts": "$::integer",
    **dict.fromkeys(_TIMES, "$::text::timestamptz"),
}
SELECTED: Final = ", ".join(f"{name}::text" if name in _AS_TEXT else name for name in COLUMNS)


def _reading(where: str, *, source: str = "public.oauth_tokens") -> str:
    return (
        "select pg_catalog.pg_is_in_recovery() as in_recovery, found.* from (values (1)) as one left join "  # noqa: S608  constants only
        f"(select {SELECTED} from {source} {where}) as found on true"
    )


def _calling(function: str) -> str:
    return f"select pg_catalog.pg_is_in_recovery() as in_recovery, public.{function}::text as answer"


def parameter(name: str, position: int) -> str:
    """Return the placeholder of a column's value."""
    return _TYPES.get(name, "$::text").replace("$", f"${position}")


BY_TOKEN_IDS: Final = _reading(
    "where (user_id, provider, service_type) in (select * from unnest($1::uuid[], $2::text[], $3::text[]))"
)
BY_USER: Final = _reading("where user_id = $1::uuid order by provider, service_type limit $2")
READ_BACK: Final = _reading("", source="public.token_vault_read_back($1::uuid[])")
ANY_ROW: Final = _reading("limit 1")
_PAGE: Final = "($1::text is null or provider = $1) and ($2::uuid is null or id > $2) order by oauth_tokens.id limit $3"
PAGE: Final = _reading(f"where encryption_scheme = $4::text and {_PAGE}")
PAGE_WITHOUT_SCHEME: Final = _reading(f"where encryption_scheme is null and {_PAGE}")
# the expression of the partial index in migration 0002, which PostgreSQL recognises only beside a constant
_STATUS: Final = {status: f"public.token_vault_status(oauth_tokens) = '{status}'" for status in TokenStatus}
INSERT: Final = (
    f"insert into public.oauth_tokens ({', '.join(COLUMNS)}) "  # noqa: S608  constants only
    f"values ({', '.join(parameter(name, at) for at, name in enumerate(COLUMNS, 1))}) "
    f"on conflict (user_id, provider, service_type) do nothing returning {SELECTED}"
)
DELETE: Final = "delete from public.oauth_tokens where id = $1::uuid and version = $2 returning version"
DELETE_MANY: Final = (
    "delete from public.oauth_tokens as tokens using unnest($1::uuid[], $2::bigint[]) as due (id, version) "
    "where tokens.id = due.id and tokens.version = due.version returning tokens.version"
)
CENSUS: Final = _calling("token_vault_census($1::text)")
SCHEMES: Final = _calling("token_vault_schemes()")
SEES_EVERY_ROW: Final = _calling("token_vault_sees_every_row()")
ACCESS_FINDINGS: Final = _calling("token_vault_access_findings()")
REPLACE_CIPHERTEXTS: Final = "select public.token_vault_replace_ciphertexts($1::text::jsonb)::text as answer"
CLAIM_REFRESH: Final = "select public.token_vault_claim_refresh($1::text::jsonb)::text as answer"
SETTLE_REFRESH: Final = "select public.token_vault_settle_refresh($1::text::jsonb)::text as answer"
COLUMN_NAMES: Final = (
    "select attname::text as name from pg_catalog.pg_attribute "
    "where attrelid = to_regclass('public.oauth_tokens') and attnum > 0 and not attisdropped"
)


def find(wanted: TokenFilter, *, after: str | None) -> tuple[str, list[object]]:
    """Return the statement that reads a page of the tokens that are wanted, and its arguments but the last, the limit.

    Only the conditions that are given are in it: with all of them, a generic plan could use no index.
    """
    arguments: list[object] = []
    conditions: list[str] = []
    for condition, value in (
        ("provider = any ($::text[])", None if wanted.providers is None else sorted(wanted.providers)),
        ("expires_at < $::text::timestamptz", to_text(wanted.expires_before)),
        ("id > $::uuid", after),
    ):
        if value is not None:
            arguments.append(value)
            conditions.append(condition.replace("$", f"${len(arguments)}"))
    if wanted.status is not None:
        conditions.append(_STATUS[wanted.status])
    where = f"where {' and '.join(conditions)} " if conditions else ""
    return _reading(f"{where}order by oauth_tokens.id limit ${len(arguments) + 1}"), arguments


def due_for_refresh(by: DueBy, *, after: bool) -> str:
    """Return the statement that reads a page of due tokens, behind a position if `after`."""
    unknown = " and expires_at is null" if by is DueBy.UNKNOWN_EXPIRY else ""
    behind = f" and ({by.column}, id) > ($6::text::timestamptz, $7::uuid)" if after else ""
    # the second line is the condition of the indexes in migration 0005
    return _reading(
        f"where provider = $1 and {by.column} < $2::text::timestamptz{unknown}{behind} "
        "and refresh_token <> '' and (is_active is null or is_active is true) and encryption_scheme is not null "
        "and (refresh_attempts > 0) = $3::boolean "
        "and (refresh_retry_at is null or refresh_retry_at <= $4::text::timestamptz) "
        "and (refresh_leased_until is null or refresh_leased_until < pg_catalog.clock_timestamp()) "
        f"order by {by.column}, id limit $5"
    )


def update(columns: list[str], *, with_scheme: bool, with_generation: bool) -> str:
    """Return the statement that sets these columns of the row with an id, a version and, if given, a scheme.

    With `with_generation`, which needs `with_scheme`, the row must also have the generation that follows the scheme.
    """
    at = len(columns)
    assignments = ", ".join(f"{name} = {parameter(name, position)}" for position, name in enumerate(columns, 1))
    scheme = f" and encryption_scheme is not distinct from ${at + 3}::text" if with_scheme else ""
    generation = f" and refresh_generation = ${at + 4}::bigint" if with_generation else ""
    return (
        f"update public.oauth_tokens set {assignments} "  # noqa: S608  column names only
        f"where id = ${at + 1}::uuid and version = ${at + 2}::bigint{scheme}{generation} returning {SELECTED}"
    )
