-- Prints the statements that restore what 0006_close_the_table.sql takes away from
-- this database, and strike it from the record of `token-vault migrate`. Changes
-- nothing. Run it before 0006, and keep what it prints:
--
--     psql "$DATABASE_URL" --no-psqlrc --quiet --tuples-only --no-align \
--         --file migrations/undo/print_undo.sql --output undo.sql

with tokens as (
    select * from pg_catalog.pg_class where oid = 'public.oauth_tokens'::regclass
),
statements as (
    select
        1 as place,
        format('alter table public.oauth_tokens add constraint %I %s', conname, pg_get_constraintdef(oid)) as statement
    from pg_catalog.pg_constraint
    where conrelid = 'public.oauth_tokens'::regclass
      and contype = 'u'
      and (
          select array_agg(attname::text order by attname)
          from pg_catalog.pg_attribute
          where attrelid = conrelid and attnum = any (conkey)
      ) = array['provider', 'user_id']

    union all
    select 1, pg_get_indexdef(indexrelid)
    from pg_catalog.pg_index
    where indrelid = 'public.oauth_tokens'::regclass
      and indisunique
      and indexprs is null
      and not exists (select from pg_catalog.pg_constraint where conindid = indexrelid)
      and (
          select array_agg(attname::text order by attname)
          from pg_catalog.pg_attribute
          where attrelid = indrelid and attnum = any (indkey[0:indnkeyatts - 1])
      ) = array['provider', 'user_id']

    union all
    select
        2,
        concat(
            format('create policy %I on public.oauth_tokens as %s for %s to ', policyname, permissive, cmd),
            (
                select string_agg(case when role = 'public' then role else quote_ident(role) end, ', ')
                from unnest(roles::text[]) as role
            ),
            ' using (' || qual || ')',
            ' with check (' || with_check || ')'
        )
    from pg_catalog.pg_policies
    where schemaname = 'public' and tablename = 'oauth_tokens'

    union all
    select 3, 'alter table public.oauth_tokens disable row level security'
    from tokens
    where not relrowsecurity

    union all
    select
        4,
        format(
            'grant %s on public.oauth_tokens to %s%s',
            string_agg(privilege_type, ', ' order by privilege_type),
            case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end,
            case when is_grantable then ' with grant option' else '' end
        )
    from tokens, aclexplode(relacl)
    where grantee <> relowner
    group by grantee, is_grantable

    union all
    select
        4,
        format(
            'grant %s (%I) on public.oauth_tokens to %s%s',
            privilege_type,
            attname,
            case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end,
            case when is_grantable then ' with grant option' else '' end
        )
    from pg_catalog.pg_attribute, aclexplode(attacl)
    where attrelid = 'public.oauth_tokens'::regclass

    union all
    select
        5,
        'do $$begin if to_regclass(''token_vault.migrations'') is not null then'
        ' delete from token_vault.migrations where name = ''0006_close_the_table''; end if; end$$'
)
select statement || ';' from statements order by place, statement;
