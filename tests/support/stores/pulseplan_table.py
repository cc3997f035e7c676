"""PulsePlan's own table with rows, in each of the variants in which it may exist."""

from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

from tests.support.stack.postgres import Database

TABLE = Path(__file__).with_name("pulseplan_table.sql")

# the owner of the first two rows
USER = "11111111-1111-4111-8111-111111111111"

# three users, every ciphertext family, and timestamps that no default would set
ROWS: LiteralString = """
insert into public.users (id)
select ('11111111-1111-4111-8111-11111111111' || n)::uuid from generate_series(1, 3) as n;
insert into public.oauth_tokens (
    id, user_id, provider, access_token, refresh_token, expires_at, scopes,
    created_at, email, updated_at, is_active, last_refreshed, service_type, provider_url
) values
    ('00000000-0000-4000-8000-000000000001', '11111111-1111-4111-8111-111111111111', 'google',
     'v1:00ff:aa:bb', 'v1:01ff:aa:bb', '2031-02-03 04:05:06.789012+00', '{a,b}',
     '2024-01-01 00:00:00.000001+00', 'x@example.org', '2024-05-05 05:05:05.5+02', true,
     '2024-06-06 06:06:06.6+00', 'calendar', null),
    ('00000000-0000-4000-8000-000000000002', '11111111-1111-4111-8111-111111111111', 'canvas',
     '00ff:aa:bb', '', '1970-01-01 00:00:00+00', null,
     null, null, null, null,
     '2024-06-06 06:06:06.6+00', 'canvas', 'https://canvas.example.edu'),
    ('00000000-0000-4000-8000-000000000003', '11111111-1111-4111-8111-111111111112', 'notion',
     '{"algorithm":"KMS","ciphertext":"QUJD"}', 'kms:{"algorithm":"KMS"}', 'infinity', '{}',
     '2024-01-01 00:00:00+00', '', '2024-01-01 00:00:00+00', false,
     '-infinity', 'default', '');
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """A difference from the table as PulsePlan documents it."""

    name: str
    sql: LiteralString


ADD_METADATA: LiteralString = """
update public.oauth_tokens set metadata = '{"base_url": "https://canvas.example.edu", "n": [1, null]}'
where provider = 'canvas';
"""
TRIGGER: LiteralString = """
create function public.touch() returns trigger language plpgsql as
$$ begin new.updated_at = now(); return new; end $$;
create trigger touch before update on public.oauth_tokens
for each row execute function public.touch();
"""
POLICIES: LiteralString = """
create policy "users read their own" on public.oauth_tokens for select to authenticated using (true);
create policy everybody on public.oauth_tokens using (user_id is not null and provider <> 'x');
"""

VARIANTS = [
    Variant("as designed", ""),
    Variant("metadata nullable", "alter table public.oauth_tokens add column metadata jsonb;" + ADD_METADATA),
    Variant(
        "metadata with an odd default",
        "alter table public.oauth_tokens add column metadata jsonb default '[]';" + ADD_METADATA,
    ),
    Variant("metadata is json", "alter table public.oauth_tokens add column metadata json;" + ADD_METADATA),
    Variant(
        "metadata is json with a default",
        "alter table public.oauth_tokens add column metadata json not null default '{}'::json;" + ADD_METADATA,
    ),
    Variant(
        "metadata is text with a default",
        "alter table public.oauth_tokens add column metadata text default '{}';" + ADD_METADATA,
    ),
    Variant(
        "metadata as after the migration",
        "alter table public.oauth_tokens add column metadata jsonb not null default '{}';" + ADD_METADATA,
    ),
    Variant("narrow constraint", "alter table public.oauth_tokens add unique (user_id, provider);"),
    Variant("narrow index", 'create unique index "One Each" on public.oauth_tokens (provider, user_id);'),
    Variant(
        "narrow partial index",
        "create unique index one_active on public.oauth_tokens (user_id, provider) where is_active;",
    ),
    Variant(
        "narrow index with an included column",
        "create unique index covering on public.oauth_tokens (user_id, provider) include (service_type);",
    ),
    Variant("wide constraint", "alter table public.oauth_tokens add unique (user_id, provider, service_type);"),
    Variant("wide index", "create unique index w on public.oauth_tokens (service_type, user_id, provider);"),
    Variant(
        "wide partial index",
        "create unique index w on public.oauth_tokens (user_id, provider, service_type) where is_active;",
    ),
    Variant(
        "wide deferrable constraint",
        "alter table public.oauth_tokens add unique (user_id, provider, service_type) deferrable;",
    ),
    Variant("updated_at trigger", TRIGGER),
    Variant("policies without row level security", POLICIES),
    Variant("policies", "alter table public.oauth_tokens enable row level security;" + POLICIES),
    Variant("no foreign key", "alter table public.oauth_tokens drop constraint oauth_tokens_user_id_fkey;"),
    Variant("no provider check", "alter table public.oauth_tokens drop constraint valid_provider;"),
    Variant(
        "two provider checks",
        """alter table public.oauth_tokens add constraint "Short Names" check (length(provider) < 10);""",
    ),
    Variant(
        "all at once",
        "alter table public.oauth_tokens add column metadata json, add unique (user_id, provider);"
        "create unique index again on public.oauth_tokens (user_id, provider);"
        "alter table public.oauth_tokens enable row level security;" + ADD_METADATA + TRIGGER + POLICIES,
    ),
]


def with_pulseplan_table(database: Database, differences: LiteralString = "") -> Database:
    database.run_file(TABLE)
    database.connection.execute(ROWS)
    if differences:
        database.connection.execute(differences)
    return database
