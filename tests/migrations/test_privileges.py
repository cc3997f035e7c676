"""The migrations leave privileges on the table to the vault's roles only, and report what else reaches the rows."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg.rows import DictRow

from tests.support.stack.postgres import Database, Postgres
from tests.support.stores.pulseplan_table import POLICIES, TRIGGER, with_pulseplan_table
from tests.support.stores.table_inspection import FILES, access_findings, acting_as, migrate_each_file_twice

OUTSIDERS = ("anon", "authenticated", "nobody")
VAULT_ROLES = ("service_role", "token_vault")
ROW: LiteralString = (
    "insert into public.oauth_tokens (user_id, provider, access_token)"
    " values ('11111111-1111-4111-8111-111111111111', 'canvas', 'v1:ciphertext')"
)
PRIVILEGES: LiteralString = """
select grantee, array_agg(privilege_type::text order by privilege_type::text) as privileges
from (
    select coalesce(rolname, 'public') as grantee, privilege_type
    from pg_class, aclexplode(relacl) left join pg_roles on pg_roles.oid = grantee
    where pg_class.oid = 'public.oauth_tokens'::regclass and grantee <> relowner
) as granted
group by grantee
"""
FUNCTIONS: LiteralString = """
select oid::regprocedure::text as name, prorettype = 'trigger'::regtype as is_trigger
from pg_proc where pronamespace = 'public'::regnamespace and proname like 'token\\_vault\\_%%'
  and has_function_privilege(%s, oid, 'execute')
"""


@pytest.fixture(scope="module")
def migrated_database(postgres: Postgres) -> Iterator[Database]:
    """One database after all migrations, with one row, and a role of the server that has no privilege of its own."""
    with postgres.new_database() as database:
        with suppress(psycopg.errors.DuplicateObject):
            database.sql("create role nobody nologin")
        database.migrate()
        database.sql(ROW)
        yield database


@pytest.fixture
def migrated(migrated_database: Database) -> Iterator[Database]:
    """The module's database in a transaction that is rolled back, which also undoes changes of roles."""
    with migrated_database.connection.transaction(force_rollback=True):
        yield migrated_database


def require_refusal(connection: psycopg.Connection[DictRow], query: bytes, *parameters: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
        connection.execute(query, parameters)


@contextmanager
def warnings_of(database: Database) -> Iterator[list[str]]:
    collected: list[str] = []

    def collect(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity == "WARNING":
            collected.append(notice.message_primary or "")

    database.connection.add_notice_handler(collect)
    try:
        yield collected
    finally:
        database.connection.remove_notice_handler(collect)


# --- privileges


@pytest.mark.parametrize("role", OUTSIDERS)
def test_outsiders_are_refused_in_a_function_with_dynamic_sql(migrated: Database, role: str) -> None:
    migrated.sql(
        "create function public.run_anything(statement text) returns void language plpgsql"
        " as $$ begin execute statement; end $$"
    )
    with acting_as(migrated, role) as connection:
        for statement in (
            "truncate public.oauth_tokens",
            "truncate public.oauth_tokens cascade",
            "select * from public.oauth_tokens",
            "select id from public.oauth_tokens",
            "select count(*) from public.oauth_tokens",
            ROW,
            "update public.oauth_tokens set access_token = 'v1:theirs'",
            "delete from public.oauth_tokens",
            "lock table public.oauth_tokens in share mode",
            "create trigger t after update on public.oauth_tokens execute function unique_key_recheck()",
            "alter table public.oauth_tokens disable row level security",
            "select public.token_vault_census()",
            "select public.token_vault_replace_ciphertexts('[]')",
        ):
            require_refusal(connection, b"select public.run_anything(%s)", statement)
    assert migrated.sql("select access_token from public.oauth_tokens") == [{"access_token": "v1:ciphertext"}]


def test_each_role_has_exactly_the_privileges_it_needs(migrated: Database) -> None:
    granted = {row["grantee"]: row["privileges"] for row in migrated.sql(PRIVILEGES)}
    assert granted == {role: ["DELETE", "INSERT", "SELECT", "UPDATE"] for role in VAULT_ROLES}
    columns = migrated.sql("select attacl from pg_attribute where attrelid = 'public.oauth_tokens'::regclass")
    assert [column for column in columns if column["attacl"] is not None] == []


def test_only_the_vaults_roles_may_call_its_functions(migrated: Database) -> None:
    for role in OUTSIDERS:
        assert migrated.sql(FUNCTIONS, (role,)) == []
    for role in VAULT_ROLES:
        called = migrated.sql(FUNCTIONS, (role,))
        assert len(called) >= 6
        assert [function["name"] for function in called if function["is_trigger"]] == []


def test_the_role_of_the_vault_can_do_nothing_else(migrated: Database) -> None:
    migrated.connection.execute("create table public.notes (); alter table public.notes enable row level security")
    with acting_as(migrated, "token_vault") as connection:
        assert len(connection.execute("select id from public.oauth_tokens for update").fetchall()) == 1
        for statement in (
            b"truncate public.oauth_tokens",
            b"select from public.notes",
            b"alter table public.oauth_tokens disable row level security",
            b"create role theirs",
        ):
            require_refusal(connection, statement)
        if migrated.major_version >= 15:  # before, everybody may create objects in the schema public
            require_refusal(connection, b"create table public.theirs ()")


def test_row_level_security_hides_rows_if_privileges_come_back(migrated: Database) -> None:
    migrated.sql("grant all on public.oauth_tokens to anon")
    with acting_as(migrated, "anon") as connection:
        assert connection.execute("select id from public.oauth_tokens").fetchall() == []
        assert connection.execute("update public.oauth_tokens set version = 7").rowcount == 0


def test_every_earlier_grant_is_revoked(empty_database: Database) -> None:
    database = with_pulseplan_table(empty_database, POLICIES)
    database.connection.execute(
        "grant all on public.oauth_tokens to public, anon, authenticated;"
        "grant select (email), update (access_token) on public.oauth_tokens to public, anon;"
        "grant select on public.oauth_tokens to service_role with grant option;"
        "set role service_role; grant select on public.oauth_tokens to anon; reset role"
    )

    migrate_each_file_twice(database)

    assert access_findings(database) == []
    assert {row["grantee"] for row in database.sql(PRIVILEGES)} == set(VAULT_ROLES)


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_no_file_alone_gives_outsiders_anything_back(migrated: Database, path: Path) -> None:
    migrated.run_file(path)
    assert access_findings(migrated) == []


# --- the role


@contextmanager
def without_the_role(database: Database) -> Iterator[None]:
    """Hide the server's role `token_vault`, which other databases use, until the transaction is rolled back."""
    with database.connection.transaction(force_rollback=True):
        if database.sql("select from pg_roles where rolname = 'token_vault'"):
            database.sql("alter role token_vault rename to not_token_vault")
        yield


@pytest.mark.parametrize("attributes", ["createrole bypassrls", "createrole", ""])
def test_an_owner_that_is_no_superuser_can_migrate(empty_database: Database, attributes: str) -> None:
    """Supabase's `postgres` has both attributes; an owner without them gets everything but the role."""
    database = with_pulseplan_table(empty_database)
    with without_the_role(database), warnings_of(database) as warned:
        database.connection.execute(
            f"create role project_owner nologin {attributes};"
            "grant all on schema public to project_owner;"
            "alter table public.oauth_tokens owner to project_owner;"
            "alter default privileges for role project_owner in schema public"
            " grant all on functions to anon, authenticated;"
            "set role project_owner".encode()
        )
        migrate_each_file_twice(database)
        roles = {row["grantee"] for row in database.sql(PRIVILEGES)}
        assert access_findings(database) == []
        # before PostgreSQL 16 only a superuser gives a role `bypassrls`
        if attributes == "createrole bypassrls" and database.major_version >= 16:
            assert (roles, warned) == ({"service_role", "token_vault"}, [])
            assert database.sql(
                "select rolbypassrls, rolcanlogin, pg_has_role('authenticator', 'token_vault', 'set') as reachable"
                " from pg_roles where rolname = 'token_vault'"
            ) == [{"rolbypassrls": True, "rolcanlogin": False, "reachable": True}]
        else:
            assert roles == {"service_role"}
            assert warned
            assert all("the role token_vault was not created" in warning for warning in warned)


# --- what else reaches the rows

VIEWS: LiteralString = """
create view public.owners_view as select id, access_token from public.oauth_tokens;
create view public.callers_view with (security_invoker = on) as select id from public.oauth_tokens;
create view public.nested_view as select id from public.callers_view;
create materialized view public.copied as select id from public.oauth_tokens;
create view public.unrelated_view as select 1 as one;
"""


def test_a_view_without_security_invoker_is_warned_of(empty_database: Database) -> None:
    if empty_database.major_version < 15:
        pytest.skip("views have no security_invoker before PostgreSQL 15")
    database = with_pulseplan_table(empty_database, VIEWS)
    with warnings_of(database) as warned:
        database.migrate()
    assert warned == [
        "the materialized view public.copied is a copy of oauth_tokens",
        "the view public.nested_view reads oauth_tokens with the rights of its owner",
        "the view public.owners_view reads oauth_tokens with the rights of its owner",
    ]


DEFINER: LiteralString = """
create function public.theirs() returns bigint language sql security definer
as 'select count(*) from public.oauth_tokens';
"""
DEFINER_WITH_PARSED_BODY: LiteralString = """
create function public.theirs() returns bigint language sql security definer
begin atomic select count(*) from public.oauth_tokens; end;
"""
FOUND: list[tuple[LiteralString, str, str]] = [
    ("grant select, truncate on public.oauth_tokens to anon", "privilege", "anon may SELECT, TRUNCATE on oauth_tokens"),
    ("grant insert on public.oauth_tokens to public", "privilege", "public may INSERT on oauth_tokens"),
    (
        "grant select (email) on public.oauth_tokens to authenticated",
        "privilege",
        "authenticated may SELECT on oauth_tokens.email",
    ),
    (
        "grant execute on function public.token_vault_schemes() to public",
        "privilege",
        "public may EXECUTE on public.token_vault_schemes()",
    ),
    ("grant truncate on public.oauth_tokens to service_role", "grant", "service_role may TRUNCATE on oauth_tokens"),
    ("grant select on public.oauth_tokens to nobody", "grant", "nobody may SELECT on oauth_tokens"),
    ("alter table public.oauth_tokens disable row level security", "row_security", "row level security"),
    ("create policy everybody on public.oauth_tokens using (true)", "policy", "the policy everybody"),
    ("create view public.theirs as select id from public.oauth_tokens", "view", "public.theirs"),
    (
        DEFINER,
        "function",
        "public.theirs() names oauth_tokens, runs with the rights of postgres, and anon, authenticated, public may",
    ),
    (DEFINER_WITH_PARSED_BODY, "function", "public.theirs()"),
    (TRIGGER, "trigger", "the trigger touch of oauth_tokens calls public.touch()"),
    (
        "create rule theirs as on delete to public.oauth_tokens do also notify deleted",
        "trigger",
        "oauth_tokens has the rule theirs",
    ),
    (
        "alter table public.oauth_tokens disable trigger token_vault_mark_foreign_write",
        "marker",
        "token_vault_mark_foreign_write of oauth_tokens is missing or disabled",
    ),
    ("drop trigger token_vault_mark_foreign_write on public.oauth_tokens", "marker", "is missing or disabled"),
    ("grant service_role to anon", "membership", "anon is a member of service_role"),
    (
        "create role backend login in role token_vault",
        "vault_member",
        "backend may act as token_vault, because it is a member",
    ),
    ("create role backend login in role service_role", "vault_member", "backend may act as service_role"),
    ("grant service_role to token_vault", "vault_member", "token_vault may act as service_role"),
    (
        "create table public.parent (like public.oauth_tokens); alter table public.oauth_tokens inherit public.parent",
        "inheritance",
        "oauth_tokens inherits from public.parent",
    ),
    (
        "create table public.child () inherits (public.oauth_tokens)",
        "inheritance",
        "public.child inherits from oauth_tokens",
    ),
    ("alter role token_vault login", "role", "the role token_vault may log in"),
    ("alter role token_vault createrole", "role", "may create roles"),
    (
        "create table public.notes (); grant select on public.notes to token_vault",
        "role",
        "token_vault may also use public.notes",
    ),
    (
        "create table public.notes (); alter table notes enable row level security; grant all on notes to public",
        "role",
        "token_vault may also use public.notes",
    ),
    ("alter role token_vault nobypassrls", "role", "has no bypassrls"),
]


@pytest.mark.parametrize(("change", "kind", "text"), FOUND, ids=[f"{kind}: {text[:40]}" for _, kind, text in FOUND])
def test_each_route_past_the_vault_is_found(migrated: Database, change: LiteralString, kind: str, text: str) -> None:
    assert access_findings(migrated) == []
    migrated.connection.execute(change)
    with acting_as(migrated, "service_role"):
        [(found, described)] = access_findings(migrated)
    assert found == kind
    assert text in described


def test_members_of_the_owner_and_members_of_members_are_found(migrated: Database) -> None:
    migrated.connection.execute(
        "create role project_owner nologin; alter table public.oauth_tokens owner to project_owner;"
        "create role team nologin in role project_owner, token_vault;"
        "create role colleague login noinherit in role team;"
        "create role administrator superuser in role project_owner"
    )
    members = [text for kind, text in access_findings(migrated) if kind == "vault_member"]
    assert members == [
        "colleague may act as project_owner, token_vault, because it is a member",
        "team may act as project_owner, token_vault, because it is a member",
    ]


def test_the_platforms_own_roles_are_no_finding(migrated: Database) -> None:
    """Supabase grants the roles of its API to its services, and `postgres` to the login role of its command line."""
    migrated.connection.execute(
        "create role supabase_storage_admin login noinherit in role authenticator;"
        "create role supabase_realtime_admin nologin noinherit in role anon, authenticated, service_role;"
        "create role cli_login_postgres login noinherit in role postgres"
    )
    assert access_findings(migrated) == []


@pytest.mark.parametrize(
    ("grant", "found"),
    [
        ("grant select, delete on public.oauth_tokens to reporting", "DELETE, SELECT on oauth_tokens"),
        ("grant select (email) on public.oauth_tokens to reporting", "SELECT on oauth_tokens"),
        (
            "grant execute on function public.token_vault_schemes() to reporting",
            "EXECUTE on public.token_vault_schemes()",
        ),
        ("grant pg_read_all_data to reporting", "SELECT on oauth_tokens"),
    ],
)
@pytest.mark.parametrize("inherits", ["inherit", "noinherit"])
def test_a_privilege_through_another_role_is_found(
    migrated: Database, grant: LiteralString, found: str, inherits: LiteralString
) -> None:
    migrated.connection.execute(
        f"create role reporting nologin; {grant}; alter role authenticated {inherits}; grant reporting to authenticated"
    )
    reached = [text for kind, text in access_findings(migrated) if kind == "indirect_privilege"]
    assert f"authenticated may {found} through reporting" in reached


def test_a_definer_function_that_a_granted_role_may_execute_is_found(migrated: Database) -> None:
    migrated.connection.execute(DEFINER)
    migrated.connection.execute(
        "create role reporting nologin; revoke all on function public.theirs() from public, anon, authenticated;"
        "grant execute on function public.theirs() to reporting; alter role authenticated inherit;"
        "grant reporting to authenticated"
    )
    [(kind, text)] = access_findings(migrated)
    assert kind == "function"
    assert text.endswith("and authenticated may execute it")
