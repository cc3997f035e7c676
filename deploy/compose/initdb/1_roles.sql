-- The roles of a Supabase project, and their grants in the schema public.

\getenv authenticator_password AUTHENTICATOR_PASSWORD

do $roles$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'authenticator') then
        create role anon nologin noinherit;
        create role authenticated nologin noinherit;
        create role service_role nologin noinherit bypassrls;
        create role authenticator noinherit login;
        grant anon, authenticated, service_role to authenticator;
    end if;
end
$roles$;

alter role authenticator password :'authenticator_password';

grant usage on schema public to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on sequences to anon, authenticated, service_role;
