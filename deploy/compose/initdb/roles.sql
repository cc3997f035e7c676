-- The roles of a Supabase project with their grants in the schema public, and the vault's own login role.

\getenv authenticator_password AUTHENTICATOR_PASSWORD
\getenv vault_login_password VAULT_LOGIN_PASSWORD

do $roles$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'authenticator') then
        create role anon nologin noinherit;
        create role authenticated nologin noinherit;
        create role service_role nologin noinherit bypassrls;
        create role authenticator noinherit login;
        grant anon, authenticated, service_role to authenticator;
    end if;
    if not exists (select from pg_catalog.pg_roles where rolname = 'token_vault') then
        create role token_vault nologin bypassrls;  -- as the migrations would, but they run later
    end if;
    if not exists (select from pg_catalog.pg_roles where rolname = 'vault_login') then
        create role vault_login login bypassrls in role token_vault;
    end if;
end
$roles$;

alter role authenticator password :'authenticator_password';
alter role vault_login password :'vault_login_password';

grant usage on schema public to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on sequences to anon, authenticated, service_role;
