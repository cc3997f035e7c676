"""A Supabase project's keys: HS256 tokens whose `role` claim PostgREST obeys."""

import secrets
import time
from dataclasses import dataclass

import jwt

_TEN_YEARS_SECONDS = 10 * 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class ProjectKeys:
    """The keys of one project, and what an operator might use by mistake."""

    jwt_secret: str
    anon: str
    service: str
    # a signed-in user's token; it travels in Authorization, beside the anon key in `apikey`
    authenticated: str
    # well formed, but signed with another project's secret
    wrong: str
    # the service key of this project, an hour after its end
    expired: str
    # a new-style key: no token, only the gateway knows which role it stands for
    secret: str

    def service_for(self, lifetime_seconds: int) -> str:
        """Make another service key, whose `exp` is so many seconds ahead."""
        return _key(self.jwt_secret, role="service_role", lifetime_seconds=lifetime_seconds)


def new_project_keys() -> ProjectKeys:
    """Make a project's keys, unlike those of any other project."""
    jwt_secret = secrets.token_urlsafe(48)
    return ProjectKeys(
        jwt_secret=jwt_secret,
        anon=_key(jwt_secret, role="anon"),
        service=_key(jwt_secret, role="service_role"),
        authenticated=_key(jwt_secret, role="authenticated"),
        wrong=_key(secrets.token_urlsafe(48), role="service_role"),
        expired=_key(jwt_secret, role="service_role", lifetime_seconds=-3600),
        secret=f"sb_secret_{secrets.token_urlsafe(24)}",
    )


def _key(jwt_secret: str, *, role: str, lifetime_seconds: int = _TEN_YEARS_SECONDS) -> str:
    now = int(time.time())
    claims: dict[str, object] = {"iss": "supabase", "ref": "vaulttests", "role": role}
    if role == "authenticated":
        claims |= {"aud": "authenticated", "sub": "0d3b7a52-5c1a-4a6e-9b1f-3f2f1d7b9f10"}
    return jwt.encode(
        claims | {"iat": now - _TEN_YEARS_SECONDS, "exp": now + lifetime_seconds},
        jwt_secret,
        algorithm="HS256",
    )
