-- Closes public.oauth_tokens to everybody but the vault's roles.
--
-- The one file that takes something away: policies, privileges, and a key over
-- (user, provider). Whatever still needs them must use the vault first
-- (docs/adopting.md). migrations/undo/print_undo.sql prints what restores them.
--
-- Safe to run twice; no row changes. Run it again after a change of privileges.

-- Row level security comes before the policies go, so no moment is open.
alter table public.oauth_tokens enable row level security;

do $migration$
declare
    tokens constant regclass := 'public.oauth_tokens';
    role_name text;
    policy record;
    narrow_index record;
    finding jsonb;
begin
    if current_setting('lock_timeout') = '0' then
        perform set_config('lock_timeout', '10s', true);
    end if;
    lock table public.oauth_tokens in access exclusive mode;

    -- A policy such as "users read their own tokens" would hand ciphertexts to
    -- browsers.
    for policy in select polname from pg_catalog.pg_policy where polrelid = tokens loop
        execute format('drop policy %I on public.oauth_tokens', policy.polname);
    end loop;

    -- A key over (user, provider) would refuse a user's second Google service.
    for narrow_index in
        select uniques.indexrelid::regclass as index_name, constraints.conname as constraint_name
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
          ) = array['provider', 'user_id']
    loop
        if narrow_index.constraint_name is not null then
            execute format('alter table public.oauth_tokens drop constraint %I', narrow_index.constraint_name);
        else
            execute format('drop index %s', narrow_index.index_name);
        end if;
    end loop;

    revoke all on public.oauth_tokens from public cascade;
    foreach role_name in array array['anon', 'authenticated', 'service_role', 'token_vault'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = role_name);
        execute format('revoke all on public.oauth_tokens from %I cascade', role_name);
        continue when role_name in ('anon', 'authenticated');
        execute format('grant select, insert, update, delete on public.oauth_tokens to %I', role_name);
    end loop;

    for finding in select * from jsonb_array_elements(public.token_vault_access_findings()) loop
        raise warning using
            message = finding ->> 'text',
            hint = 'migrations/README.md says what to do about it.';
    end loop;
end
$migration$;

notify pgrst, 'reload schema';
