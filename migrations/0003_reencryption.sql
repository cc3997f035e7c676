-- What the vault needs to move tokens to another key while everything runs.
--
-- Safe to run twice; no row changes.

-- Writes new ciphertexts of many tokens in one statement, each only where the row
-- is still exactly what was decrypted: the version, the scheme and the old
-- ciphertexts must match. Returns the ids of the rows that were written.
--
-- Neither version nor any timestamp changes, and of metadata only what describes
-- the encryption, for the token itself stays the same.
create or replace function public.token_vault_replace_ciphertexts(changes jsonb) returns jsonb
language sql
volatile
security invoker
set search_path = ''
as $function$
    with changed as (
        select *
        from pg_catalog.jsonb_to_recordset(changes) as members(
            id uuid,
            version bigint,
            old_scheme text,
            old_access_token text,
            old_refresh_token text,
            access_token text,
            refresh_token text,
            encryption_scheme text,
            metadata jsonb
        )
    ),
    -- A row that somebody is writing at this moment is theirs. Waiting for it
    -- would let two sweeps wait for each other.
    due as (
        select tokens.id
        from public.oauth_tokens as tokens
        join changed on changed.id = tokens.id
        where tokens.version = changed.version
          and tokens.encryption_scheme is not distinct from changed.old_scheme
          and tokens.access_token = changed.old_access_token
          and coalesce(tokens.refresh_token, '') = coalesce(changed.old_refresh_token, '')
        order by tokens.id
        for update of tokens skip locked
    ),
    written as (
        update public.oauth_tokens as tokens
        set access_token = changed.access_token,
            refresh_token = coalesce(changed.refresh_token, tokens.refresh_token),
            encryption_scheme = changed.encryption_scheme,
            metadata = case
                when pg_catalog.jsonb_typeof(tokens.metadata) = 'object' then
                    (tokens.metadata - array['encryption_method', 'kms_key_id', 'encryption_fallback'])
                    || changed.metadata
                else changed.metadata
            end
        from changed
        join due on due.id = changed.id
        where tokens.id = changed.id
        returning tokens.id
    )
    select coalesce(pg_catalog.jsonb_agg(id), '[]'::jsonb) from written
$function$;

comment on function public.token_vault_replace_ciphertexts(jsonb) is
    'Rewraps tokens: writes new ciphertexts where the rows are still what was decrypted.';

-- What a ciphertext looks like. Without settings of its own, so that PostgreSQL
-- puts it into the query that calls it.
create or replace function public.token_vault_material(ciphertext text) returns text
language sql
immutable
parallel safe
security invoker
as $function$
    select case
        when ciphertext ~ '^v[1-9][0-9]{0,8}:[A-Za-z0-9_-]+$'
            then 'local:' || pg_catalog.split_part(ciphertext, ':', 1)
        when ciphertext ~ '^v[1-9][0-9]{0,8}:[0-9a-f]+:[0-9a-f]+:[0-9a-f]+$'
            then 'pulseplan-local:' || pg_catalog.split_part(ciphertext, ':', 1)
        when ciphertext ~ '^[0-9a-f]+:[0-9a-f]+:[0-9a-f]+$' then 'pulseplan-local:v1'
        when ciphertext ~ '^kms:[{]"fmt":1,' then 'kms'
        when ciphertext ~ '^(kms:)?[{]' then 'pulseplan-kms'
        else 'unknown'
    end
$function$;

comment on function public.token_vault_material(text) is
    'What a ciphertext without a scheme looks like.';

-- Counts rows by how they are encrypted. Only rows without a scheme are looked
-- into, for the others carry it in an index. It reads an index or a table from
-- end to end, which takes minutes where there are many millions of rows:
-- PostgREST applies the time-out here to its transaction in place of the role's.
create or replace function public.token_vault_census(only_provider text default null) returns jsonb
language sql
stable
security invoker
set search_path = ''
set statement_timeout = '5min'
as $function$
    with
    unmarked as (
        select
            public.token_vault_material(access_token) as access,
            case when refresh_token <> '' then public.token_vault_material(refresh_token) end as refresh
        from public.oauth_tokens
        where encryption_scheme is null and (only_provider is null or provider = only_provider)
    ),
    lines as (
        select encryption_scheme as scheme, null as access, null as refresh, count(*) as rows
        from public.oauth_tokens
        where encryption_scheme is not null and (only_provider is null or provider = only_provider)
        group by encryption_scheme
        union all
        select null, access, refresh, count(*) from unmarked group by access, refresh
    )
    select coalesce(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(lines)), '[]'::jsonb) from lines
$function$;

comment on function public.token_vault_census(text) is
    'How many rows of oauth_tokens are encrypted in which way.';

-- Names the schemes that there are, null among them where rows have none. It
-- leaps from one to the next in the index, so the number of rows does not matter.
create or replace function public.token_vault_schemes() returns jsonb
language sql
stable
security invoker
set search_path = ''
as $function$
    with recursive found as (
        select (
            select tokens.encryption_scheme
            from public.oauth_tokens as tokens
            where tokens.encryption_scheme is not null
            order by tokens.encryption_scheme
            limit 1
        ) as scheme
        union all
        select (
            select tokens.encryption_scheme
            from public.oauth_tokens as tokens
            where tokens.encryption_scheme > found.scheme
            order by tokens.encryption_scheme
            limit 1
        )
        from found
        where found.scheme is not null
    ),
    schemes as (
        select scheme from found where scheme is not null
        union all
        select null where exists (select from public.oauth_tokens where encryption_scheme is null)
    )
    select coalesce(pg_catalog.jsonb_agg(scheme), '[]'::jsonb) from schemes
$function$;

comment on function public.token_vault_schemes() is
    'The schemes that rows of oauth_tokens have, uncounted.';

-- The vault raises version with each change of a token, or changes the scheme
-- with a rewrap. A secret that changes without either was written by something
-- else, PulsePlan's own code for example: it is then due for a rewrap, and the
-- vault's own writers, which condition on version, must notice. A refresh that is
-- under way loses its lease, because its result would replace that secret.
create or replace function public.token_vault_mark_foreign_write() returns trigger
language plpgsql
set search_path = ''
as $function$
begin
    new.encryption_scheme := null;
    new.version := old.version + 1;
    new.refresh_holder := null;
    return new;
end
$function$;

do $migration$
begin
    if current_setting('lock_timeout') = '0' then
        perform set_config('lock_timeout', '10s', true);
    end if;
    create or replace trigger token_vault_mark_foreign_write
    before update on public.oauth_tokens
    for each row
    when (
        new.version is not distinct from old.version
        and new.encryption_scheme is not distinct from old.encryption_scheme
        and (
            new.access_token is distinct from old.access_token
            or new.refresh_token is distinct from old.refresh_token
        )
    )
    execute function public.token_vault_mark_foreign_write();

    -- PostgreSQL lets everybody execute a new function, and Supabase grants it by
    -- name as well. Row level security would show these callers no row.
    revoke execute on function public.token_vault_replace_ciphertexts(jsonb) from public;
    revoke execute on function public.token_vault_census(text) from public;
    revoke execute on function public.token_vault_material(text) from public;
    revoke execute on function public.token_vault_schemes() from public;
    if exists (select from pg_catalog.pg_roles where rolname = 'anon') then
        revoke execute on function public.token_vault_replace_ciphertexts(jsonb) from anon;
        revoke execute on function public.token_vault_census(text) from anon;
        revoke execute on function public.token_vault_material(text) from anon;
        revoke execute on function public.token_vault_schemes() from anon;
    end if;
    if exists (select from pg_catalog.pg_roles where rolname = 'authenticated') then
        revoke execute on function public.token_vault_replace_ciphertexts(jsonb) from authenticated;
        revoke execute on function public.token_vault_census(text) from authenticated;
        revoke execute on function public.token_vault_material(text) from authenticated;
        revoke execute on function public.token_vault_schemes() from authenticated;
    end if;
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function public.token_vault_replace_ciphertexts(jsonb) to service_role;
        grant execute on function public.token_vault_census(text) to service_role;
        grant execute on function public.token_vault_material(text) to service_role;
        grant execute on function public.token_vault_schemes() to service_role;
    end if;
end
$migration$;

notify pgrst, 'reload schema';
