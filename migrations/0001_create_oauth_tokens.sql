-- public.oauth_tokens, in the shape PulsePlan has always had.
--
-- An empty database gets the table; PulsePlan's own table is left as it is. Either
-- way 0002 then brings the same table to the same shape, and 0006 closes it.
--
-- Safe to run twice. No row changes.

do $migration$
begin
    if to_regclass('public.oauth_tokens') is null then
        -- No foreign key to public.users: that table is PulsePlan's, and a vault with
        -- a database of its own has none. An existing foreign key stays.
        create table public.oauth_tokens (
            id uuid primary key,
            user_id uuid not null,
            provider text not null,
            access_token text not null,
            refresh_token text not null,
            expires_at timestamptz not null,
            scopes text[],
            created_at timestamptz,
            email text,
            updated_at timestamptz,
            is_active boolean,
            last_refreshed timestamptz not null,
            service_type text not null,
            provider_url text
        );
        -- Supabase grants every new table in public to anon and authenticated, and its
        -- API is open to the internet. Row level security without any policy shows
        -- them nothing.
        alter table public.oauth_tokens enable row level security;
    end if;

    -- The role is Supabase's; a plain PostgreSQL has none.
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on public.oauth_tokens to service_role;
    end if;
end
$migration$;

-- A row that row level security hides looks exactly like a row that does not
-- exist. A vault started with the anon key would answer "not found" for every
-- token, so it asks this question at start, with the key it was given.
create or replace function public.token_vault_sees_every_row() returns boolean
language sql
stable
security invoker  -- the caller's role is the question
set search_path = ''
as $function$
    select not pg_catalog.row_security_active('public.oauth_tokens')
$function$;

comment on function public.token_vault_sees_every_row() is
    'Whether row level security hides no row of oauth_tokens from the calling role.';

-- PostgreSQL lets everybody execute a new function. 0004 decides for all of the
-- vault's functions; service_role may ask as soon as this file has run.
revoke execute on function public.token_vault_sees_every_row() from public;
do $migration$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function public.token_vault_sees_every_row() to service_role;
    end if;
end
$migration$;

-- PostgREST answers from a cached schema; without this the function is unknown
-- to it until it restarts.
notify pgrst, 'reload schema';
