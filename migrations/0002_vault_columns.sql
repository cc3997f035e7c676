-- Brings public.oauth_tokens to the vault's shape, in place.
--
-- Safe to run twice, and no row changes: no UPDATE is used anywhere, because it
-- would fire the table's triggers and move every updated_at. The one thing that
-- is filled in, a missing metadata, is filled in by ALTER COLUMN ... TYPE, which
-- fires none.
--
-- Everything happens in one block, so that it happens entirely or not at all,
-- also under a plain "psql -f", which commits after each statement.

do $migration$
declare
    tokens constant regclass := 'public.oauth_tokens';
    unique_index record;
    provider_check record;
    has_token_id_unique boolean := false;
    duplicate_token_ids bigint;
    duplicate_rows bigint;
begin
    -- A waiting ALTER TABLE makes every later query on the table wait behind it.
    -- Rather than stop PulsePlan behind some long report, give up and say so. A
    -- session that has a limit of its own keeps it.
    if current_setting('lock_timeout') = '0' then
        perform set_config('lock_timeout', '10s', true);
    end if;
    lock table public.oauth_tokens in access exclusive mode;

    -- One row for each (user, provider, service type). Names differ from database
    -- to database, so indexes are recognised by their columns. A constraint and a
    -- plain unique index serve "on conflict" equally well: either one will do. A
    -- narrower one, such as (user, provider), stays until 0006, because PulsePlan's
    -- own upserts may need it.
    for unique_index in
        select
            uniques.indexrelid::regclass as index_name,
            constraints.conname as constraint_name,
            uniques.indpred is null and uniques.indimmediate as serves_upserts
        from pg_catalog.pg_index as uniques
        left join pg_catalog.pg_constraint as constraints
            on constraints.conindid = uniques.indexrelid
            and constraints.conrelid = uniques.indrelid
            and constraints.contype = 'u'
        where uniques.indrelid = tokens
          and uniques.indisunique
          and uniques.indisvalid
          and not uniques.indisprimary
          and uniques.indexprs is null
          and (
              select array_agg(columns.attname::text order by columns.attname)
              from pg_catalog.pg_attribute as columns
              where columns.attrelid = uniques.indrelid
                and columns.attnum = any (uniques.indkey[0:uniques.indnkeyatts - 1])
          ) = array['provider', 'service_type', 'user_id']
    loop
        if unique_index.serves_upserts then
            has_token_id_unique := true;
        -- Partial or deferrable: "on conflict" does not take it.
        elsif unique_index.constraint_name is not null then
            execute format('alter table public.oauth_tokens drop constraint %I', unique_index.constraint_name);
        else
            execute format('drop index %s', unique_index.index_name);
        end if;
    end loop;

    if not has_token_id_unique then
        select count(*), coalesce(sum(copies), 0)
        into duplicate_token_ids, duplicate_rows
        from (
            select count(*) as copies
            from public.oauth_tokens
            group by user_id, provider, service_type
            having count(*) > 1
        ) as duplicates;

        -- Which of two tokens is the live one is not ours to guess.
        if duplicate_token_ids > 0 then
            raise exception using
                errcode = 'unique_violation',
                message = format(
                    'public.oauth_tokens has %s tokens that are stored more than once (%s rows '
                    'in all with a user_id, provider and service_type that another row has too)',
                    duplicate_token_ids, duplicate_rows
                ),
                detail = 'Nothing was changed.',
                hint = 'Keep one row of each, then run this file again. To list them: '
                    'select user_id, provider, service_type, array_agg(id) from '
                    'public.oauth_tokens group by 1, 2, 3 having count(*) > 1';
        end if;

        alter table public.oauth_tokens
            add constraint oauth_tokens_user_id_provider_service_type_key
            unique (user_id, provider, service_type);
    end if;

    -- metadata may be absent, json instead of jsonb, or null in some rows. Only
    -- the latter two rewrite the table, and only the first time.
    alter table public.oauth_tokens
        add column if not exists metadata jsonb not null default '{}';
    if exists (
        select
        from pg_catalog.pg_attribute
        where attrelid = tokens and attname = 'metadata' and atttypid <> 'jsonb'::regtype
    ) or exists (select from public.oauth_tokens where metadata is null) then
        alter table public.oauth_tokens
            -- the old default may not convert
            alter column metadata drop default,
            alter column metadata type jsonb using coalesce(metadata::jsonb, '{}');
    end if;

    alter table public.oauth_tokens
        -- API keys, Canvas's for one, neither refresh nor expire
        alter column refresh_token drop not null,
        alter column expires_at drop not null,
        alter column service_type set default 'default',
        alter column service_type set not null,
        alter column metadata set default '{}',
        alter column metadata set not null,
        -- raised by each change of a token; a write is conditional on it
        add column if not exists version bigint not null default 1,
        -- null: written by something else than the vault, so due for a rewrap
        add column if not exists encryption_scheme text,
        -- when the refresh token ends, where the provider says so
        add column if not exists refresh_token_expires_at timestamptz,
        -- the lease of a refresh: counted by each claim, held by one refresh, alive
        -- until a time by this database's clock
        add column if not exists refresh_generation bigint not null default 0,
        add column if not exists refresh_holder uuid,
        add column if not exists refresh_leased_until timestamptz,
        -- failed refreshes since the last success, and when the next one is due
        add column if not exists refresh_attempts integer not null default 0,
        add column if not exists refresh_retry_at timestamptz,
        add column if not exists refresh_failure text,
        alter column id set default gen_random_uuid(),
        alter column created_at set default now(),
        alter column updated_at set default now(),
        alter column last_refreshed set default now(),
        alter column is_active set default true;

    -- A new row's version is its creation time in milliseconds, so that no version
    -- of a deleted token, and no ETag, comes again. Existing rows keep theirs.
    alter table public.oauth_tokens
        alter column version
        set default floor(extract(epoch from clock_timestamp()) * 1000)::bigint;

    -- A new provider must not need a migration, so a pattern takes the place of
    -- the list. A check that involves other columns as well says something else,
    -- and stays.
    for provider_check in
        select constraints.conname as constraint_name
        from pg_catalog.pg_constraint as constraints
        join pg_catalog.pg_attribute as columns
            on columns.attrelid = constraints.conrelid
            and constraints.conkey = array[columns.attnum]
        where constraints.conrelid = tokens
          and constraints.contype = 'c'
          and columns.attname = 'provider'
          and constraints.conname <> 'oauth_tokens_provider_pattern'
    loop
        execute format(
            'alter table public.oauth_tokens drop constraint %I', provider_check.constraint_name
        );
    end loop;

    if not exists (
        select
        from pg_catalog.pg_constraint
        where conrelid = tokens and conname = 'oauth_tokens_provider_pattern'
    ) then
        alter table public.oauth_tokens
            add constraint oauth_tokens_provider_pattern
            check (provider ~ '^[a-z][a-z0-9_-]{0,31}$') not valid;
    end if;
    begin
        alter table public.oauth_tokens validate constraint oauth_tokens_provider_pattern;
    exception when check_violation then
        -- Not a reason to stop: the vault cannot address those rows, but it does
        -- not lose them either. New rows are held to the pattern already.
        raise warning using
            message = 'some rows of public.oauth_tokens have a provider that the vault cannot '
                'address; they were kept',
            hint = 'To list them: select id, provider from public.oauth_tokens where '
                'provider !~ ''^[a-z][a-z0-9_-]{0,31}$''. Rename them, then run this file again.';
    end;

    -- A sweep walks the rows of each stale scheme in id order.
    create index if not exists oauth_tokens_encryption_scheme_id_idx
        on public.oauth_tokens (encryption_scheme, id);

    -- The tokens of a provider in the order in which they expire.
    create index if not exists oauth_tokens_provider_expires_at_id_idx
        on public.oauth_tokens (provider, expires_at, id);
    create index if not exists oauth_tokens_expires_at_id_idx
        on public.oauth_tokens (expires_at, id);

    -- The tokens that do not work, which are few. The expression is that of
    -- token_vault_status() below.
    create index if not exists oauth_tokens_status_id_idx
        on public.oauth_tokens (
            (
                case
                    when coalesce(metadata ->> 'status', 'ok') = 'ok'
                        then case when is_active is false then 'needs_reauth' else 'ok' end
                    when metadata ->> 'status' in ('needs_reauth', 'revoked') then metadata ->> 'status'
                    else 'error'
                end
            ),
            id
        )
        where (
            case
                when coalesce(metadata ->> 'status', 'ok') = 'ok'
                    then case when is_active is false then 'needs_reauth' else 'ok' end
                when metadata ->> 'status' in ('needs_reauth', 'revoked') then metadata ->> 'status'
                else 'error'
            end
        ) <> 'ok';
    -- Of a partial index PostgreSQL uses no statistics, so it would take the tokens
    -- whose status is ok for few.
    create statistics if not exists public.oauth_tokens_status on (
        case
            when coalesce(metadata ->> 'status', 'ok') = 'ok'
                then case when is_active is false then 'needs_reauth' else 'ok' end
            when metadata ->> 'status' in ('needs_reauth', 'revoked') then metadata ->> 'status'
            else 'error'
        end
    ) from public.oauth_tokens;
end
$migration$;

-- The status that the vault shows for a row: the more cautious one where metadata
-- and is_active contradict each other. Without settings of its own, so that
-- PostgreSQL puts it into the query that calls it, and finds the index.
create or replace function public.token_vault_status(token public.oauth_tokens) returns text
language sql
immutable
parallel safe
security invoker
as $function$
    select case
        when coalesce(token.metadata ->> 'status', 'ok') = 'ok'
            then case when token.is_active is false then 'needs_reauth' else 'ok' end
        when token.metadata ->> 'status' in ('needs_reauth', 'revoked') then token.metadata ->> 'status'
        else 'error'
    end
$function$;

comment on function public.token_vault_status(public.oauth_tokens) is
    'The status that the vault shows for a row of oauth_tokens.';

-- PostgREST answers from a cached schema.
notify pgrst, 'reload schema';
