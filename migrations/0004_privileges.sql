-- The role token_vault, and the privileges of the vault's roles and functions.
--
-- Safe to run twice; no row changes. What others may do with the table ends in 0006.
--
-- The default privileges of the schema stay as they are, because they belong to
-- the whole project: on Supabase they grant every new table and function in
-- public to anon and authenticated. So each object of the vault is revoked by
-- name, and token_vault_access_findings() reports what was granted since.

-- What lets others reach the rows, as an array of {"kind", "text"}, empty if
-- nothing does. It reads the system catalogs only, which every role may read.
--
-- Kinds: privilege, indirect_privilege (through another role), membership,
-- row_security, policy and inheritance concern public, anon and authenticated, or
-- all roles; grant is a privilege of another role; vault_member is another role
-- that may act as the owner or as a role of the vault; view, function, trigger,
-- marker (the vault's own trigger) and role are worth a look.
create or replace function public.token_vault_access_findings() returns jsonb
language sql
stable
security invoker
set search_path = ''
as $function$
    with recursive
    tokens as (
        select oid, relowner, relacl, relrowsecurity
        from pg_catalog.pg_class
        where oid = 'public.oauth_tokens'::regclass
    ),
    outsiders as (
        select 0::oid as oid, 'public'::name as name
        union all
        select oid, rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated')
    ),
    vault_roles as (
        select oid, rolname as name from pg_catalog.pg_roles where rolname in ('service_role', 'token_vault')
    ),
    vault_functions as (
        select oid, proowner, proacl
        from pg_catalog.pg_proc
        where pronamespace = 'public'::regnamespace and proname like 'token\_vault\_%'
    ),
    trusted as (
        select oid from vault_roles union select relowner from tokens
    ),
    -- with or without inheritance: a member can also switch to the role
    members as (
        select grants.roleid as target, grants.member
        from trusted
        join pg_catalog.pg_auth_members as grants on grants.roleid = trusted.oid
        union
        select members.target, grants.member
        from members
        join pg_catalog.pg_auth_members as grants on grants.roleid = members.member
    ),
    -- each outsider as itself and as every role that it is a member of
    acting as (
        select outsiders.oid, outsiders.name, outsiders.oid as role, outsiders.name as role_name from outsiders
        union
        select outsiders.oid, outsiders.name, roles.oid, roles.rolname
        from outsiders
        join pg_catalog.pg_roles as roles
            on outsiders.oid <> 0 and pg_catalog.pg_has_role(outsiders.oid, roles.oid, 'MEMBER')
    ),
    indirect_privileges as (
        select acting.name, acting.role, acting.role_name, acl.privilege_type as privilege, 'oauth_tokens' as object
        from acting,
            tokens,
            -- every privilege that this version of PostgreSQL has for tables
            lateral pg_catalog.aclexplode(pg_catalog.acldefault('r', tokens.relowner)) as acl
        where acting.role <> acting.oid
          and case
              when acl.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') then
                  pg_catalog.has_any_column_privilege(acting.role_name, tokens.oid, acl.privilege_type)
                  and not pg_catalog.has_any_column_privilege('public', tokens.oid, acl.privilege_type)
              else
                  pg_catalog.has_table_privilege(acting.role_name, tokens.oid, acl.privilege_type)
                  and not pg_catalog.has_table_privilege('public', tokens.oid, acl.privilege_type)
          end
        union all
        select acting.name, acting.role, acting.role_name, 'EXECUTE', functions.oid::regprocedure::text
        from acting, vault_functions as functions
        where acting.role <> acting.oid
          and pg_catalog.has_function_privilege(acting.role_name, functions.oid, 'EXECUTE')
          and not pg_catalog.has_function_privilege('public', functions.oid, 'EXECUTE')
    ),
    privileges as (
        select acl.grantee, acl.privilege_type as privilege, 'oauth_tokens' as object, tokens.relowner as owner
        from tokens, lateral pg_catalog.aclexplode(tokens.relacl) as acl
        union all
        select acl.grantee, acl.privilege_type, 'oauth_tokens.' || columns.attname, tokens.relowner
        from tokens
        join pg_catalog.pg_attribute as columns on columns.attrelid = tokens.oid,
            lateral pg_catalog.aclexplode(columns.attacl) as acl
        union all
        select acl.grantee, acl.privilege_type, functions.oid::regprocedure::text, functions.proowner
        from vault_functions as functions,
            -- null means the default, and that lets everybody execute
            lateral pg_catalog.aclexplode(
                coalesce(functions.proacl, pg_catalog.acldefault('f', functions.proowner))
            ) as acl
    ),
    view_sources as (
        select classes.oid as view, uses.refobjid as source
        from pg_catalog.pg_depend as uses
        join pg_catalog.pg_rewrite as rewrites on rewrites.oid = uses.objid
        join pg_catalog.pg_class as classes on classes.oid = rewrites.ev_class
        where uses.classid = 'pg_catalog.pg_rewrite'::regclass
          and uses.refclassid = 'pg_catalog.pg_class'::regclass
          and classes.relkind in ('v', 'm')
    ),
    -- views over the table, and views over these
    views as (
        select view_sources.view from tokens join view_sources on view_sources.source = tokens.oid
        union
        select view_sources.view from views join view_sources on view_sources.source = views.view
    ),
    findings (kind, text) as (
        select
            case when privileges.grantee in (select oid from outsiders) then 'privilege' else 'grant' end,
            pg_catalog.format(
                '%s may %s on %s',
                coalesce(roles.rolname, 'public'),
                pg_catalog.string_agg(distinct privileges.privilege, ', '),
                privileges.object
            )
        from privileges
        left join pg_catalog.pg_roles as roles on roles.oid = privileges.grantee
        where privileges.grantee <> privileges.owner
          and roles.rolsuper is not true
          and not (
              privileges.grantee in (select oid from vault_roles)
              and privileges.privilege in ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'EXECUTE')
          )
        group by privileges.grantee, roles.rolname, privileges.object

        union all
        select
            'membership',
            pg_catalog.format('%s is a member of %s', outsiders.name, pg_catalog.pg_get_userbyid(targets.oid))
        from outsiders, trusted as targets
        where outsiders.oid <> 0 and pg_catalog.pg_has_role(outsiders.oid, targets.oid, 'MEMBER')

        union all
        select
            'indirect_privilege',
            pg_catalog.format(
                '%s may %s on %s through %s',
                name, pg_catalog.string_agg(distinct privilege, ', '), object, role_name
            )
        from indirect_privileges
        -- these are the finding membership
        where role not in (select oid from trusted union select member from members)
        group by name, role_name, object

        union all
        select
            'vault_member',
            pg_catalog.format(
                '%s may act as %s, because it is a member',
                roles.rolname,
                pg_catalog.string_agg(distinct pg_catalog.pg_get_userbyid(members.target)::text, ', ')
            )
        from members
        join pg_catalog.pg_roles as roles on roles.oid = members.member
        where not roles.rolsuper
          and roles.oid not in (select oid from outsiders union select relowner from tokens)
          -- Supabase's own roles, which have these memberships in every project
          and roles.rolname not in ('authenticator', 'postgres', 'cli_login_postgres', 'dashboard_user', 'pgbouncer')
          and roles.rolname not like 'supabase\_%'
        group by roles.rolname

        union all
        select
            'inheritance',
            case inherits.inhrelid
                when tokens.oid then pg_catalog.format(
                    'oauth_tokens inherits from %s, so a privilege on that table reaches the rows',
                    inherits.inhparent::regclass
                )
                else pg_catalog.format(
                    '%s inherits from oauth_tokens, so its rows appear as tokens', inherits.inhrelid::regclass
                )
            end
        from tokens
        join pg_catalog.pg_inherits as inherits on tokens.oid in (inherits.inhrelid, inherits.inhparent)

        union all
        select 'row_security', 'row level security of oauth_tokens is off' from tokens where not relrowsecurity

        union all
        select 'policy', pg_catalog.format('oauth_tokens has the policy %I', policies.polname)
        from tokens
        join pg_catalog.pg_policy as policies on policies.polrelid = tokens.oid

        union all
        select
            'view',
            case classes.relkind
                when 'm' then pg_catalog.format('the materialized view %s is a copy of oauth_tokens', classes.oid::regclass)
                else pg_catalog.format(
                    'the view %s reads oauth_tokens with the rights of its owner', classes.oid::regclass
                )
            end
        from views
        join pg_catalog.pg_class as classes on classes.oid = views.view
        where not exists (
            select
            from pg_catalog.pg_options_to_table(classes.reloptions)
            where option_name = 'security_invoker' and option_value::boolean
        )

        union all
        select
            'function',
            pg_catalog.format(
                'the function %s names oauth_tokens, runs with the rights of %s, and %s may execute it',
                functions.oid::regprocedure,
                pg_catalog.pg_get_userbyid(functions.proowner),
                pg_catalog.string_agg(distinct acting.name::text, ', ')
            )
        from pg_catalog.pg_proc as functions
        join acting on pg_catalog.has_function_privilege(acting.role_name, functions.oid, 'EXECUTE')
        where functions.prosecdef
          and coalesce(pg_catalog.pg_get_function_sqlbody(functions.oid), functions.prosrc) ilike '%oauth\_tokens%'
        group by functions.oid, functions.proowner

        union all
        select
            'trigger',
            pg_catalog.format('the trigger %I of oauth_tokens calls %s', triggers.tgname, functions.oid::regprocedure)
        from tokens
        join pg_catalog.pg_trigger as triggers on triggers.tgrelid = tokens.oid and not triggers.tgisinternal
        join pg_catalog.pg_proc as functions on functions.oid = triggers.tgfoid
        where functions.oid not in (select oid from vault_functions) or functions.proowner <> tokens.relowner

        union all
        select 'trigger', pg_catalog.format('oauth_tokens has the rule %I', rules.rulename)
        from tokens
        join pg_catalog.pg_rewrite as rules on rules.ev_class = tokens.oid

        union all
        select 'marker', 'the trigger token_vault_mark_foreign_write of oauth_tokens is missing or disabled'
        from tokens
        where not exists (
            select
            from pg_catalog.pg_trigger
            where tgrelid = tokens.oid and tgname = 'token_vault_mark_foreign_write' and tgenabled in ('O', 'A')
        )

        union all
        select 'role', 'the role token_vault is a superuser, or may create roles or databases, or replicate'
        from pg_catalog.pg_roles
        where rolname = 'token_vault' and (rolsuper or rolcreaterole or rolcreatedb or rolreplication)

        union all
        select 'role', 'the role token_vault may log in'
        from pg_catalog.pg_roles
        where rolname = 'token_vault' and rolcanlogin

        union all
        select 'role', pg_catalog.format('the role token_vault may also use %s', classes.oid::regclass)
        from tokens, pg_catalog.pg_class as classes, pg_catalog.pg_roles as roles
        where roles.rolname = 'token_vault'
          and classes.oid <> tokens.oid
          and exists (
              select
              from pg_catalog.aclexplode(classes.relacl) as acl
              where acl.grantee = roles.oid
                 -- it bypasses the row level security that makes such a grant safe
                 or acl.grantee = 0 and classes.relrowsecurity
          )

        union all
        select 'role', 'the role token_vault has no bypassrls, so row level security hides every row from it'
        from pg_catalog.pg_roles
        where rolname = 'token_vault' and not rolbypassrls and not rolsuper
    )
    select coalesce(
        pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('kind', kind, 'text', text) order by kind, text), '[]'::jsonb
    )
    from findings
$function$;

comment on function public.token_vault_access_findings() is
    'What lets roles other than the vault''s reach the rows of oauth_tokens.';

do $migration$
declare
    vault_functions constant regprocedure[] := array[
        'public.token_vault_sees_every_row()',
        'public.token_vault_status(public.oauth_tokens)',
        'public.token_vault_replace_ciphertexts(jsonb)',
        'public.token_vault_material(text)',
        'public.token_vault_census(text)',
        'public.token_vault_schemes()',
        'public.token_vault_access_findings()'
    ];
    role_name text;
    vault_function regprocedure;
begin
    if current_setting('lock_timeout') = '0' then
        perform set_config('lock_timeout', '10s', true);
    end if;

    -- A role for a vault that should be able to use this one table, what public may
    -- use, and nothing else: service_role reads the whole project. It bypasses row level security,
    -- because a policy for it would be one more door. It belongs to the server, so
    -- another database may have created it.
    if not exists (select from pg_catalog.pg_roles where rolname = 'token_vault') then
        begin
            create role token_vault nologin bypassrls;
        exception
            when duplicate_object or unique_violation then
                null;  -- created by another session since
            when insufficient_privilege then
                raise warning using
                    message = 'the role token_vault was not created, because the current role may not '
                        'create one that has bypassrls; service_role still works',
                    hint = 'As a superuser: create role token_vault nologin bypassrls. Then run this file again.';
        end;
    end if;

    revoke all on function public.token_vault_mark_foreign_write() from public cascade;
    foreach role_name in array array['anon', 'authenticated', 'service_role', 'token_vault'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = role_name);
        -- a trigger needs no privilege on its function
        execute format(
            'revoke all on function public.token_vault_mark_foreign_write() from %I cascade', role_name
        );
    end loop;
    foreach vault_function in array vault_functions loop
        execute format('revoke all on function %s from public cascade', vault_function);
        foreach role_name in array array['anon', 'authenticated', 'service_role', 'token_vault'] loop
            continue when not exists (select from pg_catalog.pg_roles where rolname = role_name);
            execute format('revoke all on function %s from %I cascade', vault_function, role_name);
            continue when role_name in ('anon', 'authenticated');
            execute format('grant execute on function %s to %I', vault_function, role_name);
        end loop;
    end loop;
    foreach role_name in array array['service_role', 'token_vault'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = role_name);
        if not has_schema_privilege(role_name, 'public', 'usage') then
            execute format('grant usage on schema public to %I', role_name);
        end if;
        execute format('grant select, insert, update, delete on public.oauth_tokens to %I', role_name);
    end loop;

    -- PostgREST logs in as authenticator and switches to the role of the key.
    if exists (select from pg_catalog.pg_roles where rolname = 'token_vault')
        and exists (select from pg_catalog.pg_roles where rolname = 'authenticator')
        and not pg_has_role('authenticator', 'token_vault', 'member')
    then
        begin
            grant token_vault to authenticator;
        exception when insufficient_privilege then
            raise warning using
                message = 'PostgREST cannot switch to the role token_vault, because the current role may not grant it',
                hint = 'As the role that created it: grant token_vault to authenticator.';
        end;
    end if;
end
$migration$;

notify pgrst, 'reload schema';
