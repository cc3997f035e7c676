"""What a PostgreSQL server says about itself and the role that is logged in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MINIMUM_VERSION: Final = 14

# Privileges of public are not the role's own. Views and tables of the system schemas are everybody's.
SERVER: Final = """
select
    pg_catalog.current_setting('server_version_num')::integer / 10000 as version,
    current_user::text as "user",
    pg_catalog.current_setting('transaction_read_only')::boolean as read_only,
    pg_catalog.current_setting('statement_timeout') <> '0' as has_timeout,
    (
        select coalesce(pg_catalog.array_agg(name order by name desc), '{}')
        from pg_catalog.unnest(array['synchronous_commit', 'fsync']) as name
        where pg_catalog.current_setting(name) = 'off'
    ) as unsafe_settings,
    (select rolsuper from pg_catalog.pg_roles where rolname = current_user) as superuser,
    (
        select pg_catalog.array_remove(array[
            case when rolcreaterole then 'createrole' end,
            case when rolcreatedb then 'createdb' end,
            case when rolreplication then 'replication' end
        ], null)
        from pg_catalog.pg_roles where rolname = current_user
    ) as attributes,
    coalesce((
        select pg_catalog.array_agg(roles.rolname::text order by roles.rolname)
        from pg_catalog.pg_roles as roles
        where roles.rolname not in (current_user, 'token_vault')
          and pg_catalog.pg_has_role(current_user, roles.oid, 'member')
    ), '{}') as memberships,
    coalesce((
        select pg_catalog.array_agg(classes.oid::regclass::text order by classes.oid::regclass::text)
        from pg_catalog.pg_class as classes
        join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
        where classes.relkind in ('r', 'p', 'v', 'm', 'f')
          and namespaces.nspname not in ('pg_catalog', 'information_schema')
          and namespaces.nspname not like 'pg\\_%'
          and classes.oid is distinct from pg_catalog.to_regclass('public.oauth_tokens')
          and pg_catalog.has_table_privilege(classes.oid, 'select, insert, update, delete')
          and not pg_catalog.has_table_privilege('public', classes.oid, 'select, insert, update, delete')
    ), '{}') as other_tables,
    coalesce((
        select pg_catalog.array_agg(needed order by needed)
        from pg_catalog.unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) as needed
        where not pg_catalog.has_table_privilege(pg_catalog.to_regclass('public.oauth_tokens'), needed)
    ), '{}') as missing
"""


@dataclass(frozen=True, slots=True)
class ServerReport:
    """`direct` is false behind a pooler. `unsafe_settings` lose commits in a crash.

    `other_tables` and `memberships` are more than the vault needs.
    """

    version: int
    user: str
    read_only: bool
    has_timeout: bool
    unsafe_settings: tuple[str, ...]
    superuser: bool
    attributes: tuple[str, ...]
    memberships: tuple[str, ...]
    other_tables: tuple[str, ...]
    missing: tuple[str, ...]
    direct: bool


def server_report(row: Mapping[str, Any], *, direct: bool) -> ServerReport:
    return ServerReport(
        version=row["version"],
        user=row["user"],
        read_only=row["read_only"],
        has_timeout=row["has_timeout"],
        unsafe_settings=tuple(row["unsafe_settings"]),
        superuser=row["superuser"],
        attributes=tuple(row["attributes"]),
        memberships=tuple(row["memberships"]),
        other_tables=tuple(row["other_tables"]),
        missing=tuple(row["missing"]),
        direct=direct,
    )
