-- PulsePlan's own table, as it was before the vault: what the migrations upgrade.
-- Its two companions come with it, so that the foreign key and the trigger are real.

create table public.users (
    id uuid primary key
);

create table public.oauth_tokens (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references public.users (id) on delete cascade,
    provider text not null constraint valid_provider check (
        provider in ('google', 'microsoft', 'apple', 'canvas', 'notion')
    ),
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
