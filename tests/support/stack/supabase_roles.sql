-- The roles of a Supabase project, and what it grants them in public. Roles belong to
-- the whole server and the grants to one database, so this runs once in each database.

do $roles$
begin
    if not exists (select from pg_roles where rolname = 'authenticator') then
        create role anon nologin noinherit;
        create role authenticated nologin noinherit;
        create role service_role nologin noinherit bypassrls;
        create role authenticator noinherit login;
        grant anon, authenticated, service_role to authenticator;
        -- Supabase's own limits
        alter role anon set statement_timeout = '3s';
        alter role authenticated set statement_timeout = '8s';
        alter role authenticator set statement_timeout = '8s';
        alter role authenticator set lock_timeout = '8s';
    end if;
end
$roles$;

grant usage on schema public to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on sequences to anon, authenticated, service_role;
