-- What the vault needs to refresh a token once, however many replicas try, and to
-- lose no new refresh token on the way, and to learn the outcome of a write whose
-- answer was lost.
--
-- Safe to run twice; no row changes.

-- Takes the lease for one refresh, in one statement on this database's clock.
-- Returns the row's id in an array, or an empty array if somebody else refreshes
-- it or the row is no longer what the caller read.
create or replace function public.token_vault_claim_refresh(claim jsonb) returns jsonb
language sql
volatile
security invoker
set search_path = ''
as $function$
    with wanted as (
        select *
        from pg_catalog.jsonb_to_record(claim) as members(
            id uuid,
            version bigint,
            scheme text,
            generation bigint,
            old_holder uuid,
            holder uuid,
            lease_seconds integer
        )
    ),
    claimed as (
        update public.oauth_tokens as tokens
        set refresh_generation = tokens.refresh_generation + 1,
            refresh_holder = wanted.holder,
            refresh_leased_until =
                pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => wanted.lease_seconds)
        from wanted
        where tokens.id = wanted.id
          and tokens.version = wanted.version
          and tokens.encryption_scheme is not distinct from wanted.scheme
          and tokens.refresh_generation = wanted.generation
          and tokens.refresh_holder is not distinct from wanted.old_holder
          and (
              tokens.refresh_holder is null
              or coalesce(tokens.refresh_leased_until < pg_catalog.clock_timestamp(), true)
          )
        returning tokens.id
    )
    select coalesce(pg_catalog.jsonb_agg(id), '[]'::jsonb) from claimed
$function$;

comment on function public.token_vault_claim_refresh(jsonb) is
    'Takes the lease for the refresh of one token.';

-- Writes the result of a refresh and ends its lease, if this refresh still holds
-- it. Columns that `columns` does not name stay, and so does the caller's
-- metadata; a null in `metadata` removes a key of the vault's. The row may have
-- another version by now: a change of its status or metadata must not discard a
-- new refresh token.
create or replace function public.token_vault_settle_refresh(settlement jsonb) returns jsonb
language sql
volatile
security invoker
set search_path = ''
as $function$
    with wanted as (
        select *
        from pg_catalog.jsonb_to_record(settlement) as members(
            id uuid,
            holder uuid,
            generation bigint,
            columns jsonb,
            metadata jsonb,
            raises_version boolean
        )
    ),
    settled as (
        update public.oauth_tokens as tokens
        set (
                access_token, refresh_token, encryption_scheme, expires_at, refresh_token_expires_at, scopes,
                is_active, updated_at, last_refreshed, refresh_attempts, refresh_retry_at, refresh_failure
            ) = (
                select
                    after.access_token, after.refresh_token, after.encryption_scheme, after.expires_at,
                    after.refresh_token_expires_at, after.scopes, after.is_active, after.updated_at,
                    after.last_refreshed, after.refresh_attempts, after.refresh_retry_at, after.refresh_failure
                -- what is not given is the row's, as it is once nobody else writes it
                from pg_catalog.jsonb_populate_record(tokens, wanted.columns) as after
            ),
            refresh_holder = null,
            refresh_leased_until = null,
            version = tokens.version + wanted.raises_version::integer,
            metadata = case
                when pg_catalog.jsonb_typeof(tokens.metadata) = 'object' then
                    (
                        tokens.metadata
                        - array(select pg_catalog.jsonb_object_keys(wanted.metadata))
                    ) || pg_catalog.jsonb_strip_nulls(wanted.metadata)
                else pg_catalog.jsonb_strip_nulls(wanted.metadata)
            end
        from wanted
        where tokens.id = wanted.id
          and tokens.refresh_holder = wanted.holder
          and tokens.refresh_generation = wanted.generation
        returning tokens.id
    )
    select coalesce(pg_catalog.jsonb_agg(id), '[]'::jsonb) from settled
$function$;

comment on function public.token_vault_settle_refresh(jsonb) is
    'Writes the result of a refresh and ends its lease.';

-- Reads rows after a write whose answer was lost. A plain read may show a commit that no
-- synchronous standby has, if the session that waited for the standby was ended; a
-- failover undoes it. The message makes this call a write, whose own commit ends when
-- the standby has it and every commit before it.
create or replace function public.token_vault_read_back(row_ids uuid[]) returns setof public.oauth_tokens
language sql
volatile
security invoker
set search_path = ''
as $function$
    select pg_catalog.pg_logical_emit_message(true, 'token_vault', ''::text);
    select * from public.oauth_tokens where id = any (row_ids)
$function$;

comment on function public.token_vault_read_back(uuid[]) is
    'Reads rows so that no failover undoes what it shows.';

-- The tokens of a provider that can be refreshed, in the order in which they expire, and
-- in that of their last refresh. A token that nobody can refresh is in neither.
create index if not exists oauth_tokens_expiring_idx on public.oauth_tokens (provider, expires_at, id)
    where refresh_token <> '' and (is_active is null or is_active is true) and encryption_scheme is not null;
create index if not exists oauth_tokens_idle_idx on public.oauth_tokens (provider, last_refreshed, id)
    where refresh_token <> '' and (is_active is null or is_active is true) and encryption_scheme is not null;

do $migration$
declare
    vault_function regprocedure;
    role_name text;
begin
    foreach vault_function in array array[
        'public.token_vault_claim_refresh(jsonb)', 'public.token_vault_settle_refresh(jsonb)',
        'public.token_vault_read_back(uuid[])'
    ]::regprocedure[] loop
        execute format('revoke all on function %s from public cascade', vault_function);
        foreach role_name in array array['anon', 'authenticated', 'service_role', 'token_vault'] loop
            continue when not exists (select from pg_catalog.pg_roles where rolname = role_name);
            execute format('revoke all on function %s from %I cascade', vault_function, role_name);
            continue when role_name in ('anon', 'authenticated');
            execute format('grant execute on function %s to %I', vault_function, role_name);
        end loop;
    end loop;
end
$migration$;

notify pgrst, 'reload schema';
