"""`token-vault doctor` on service keys that act for users, and on the issuer's keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.process.home import new_home, token_vault
from tests.support.security.user_jwts import ISSUER, SECRET, new_signing_key
from tests.support.stack.jwks import jwks_endpoint

_COMMON = {"scopes": ["tokens:reveal"], "expires_at": "2099-01-01T00:00:00Z"}
LIMITED = {**_COMMON, "service": "api", "sha256": "a" * 64, "on_behalf_of": "required"}
EVERY = {**_COMMON, "service": "jobs", "sha256": "b" * 64}


def _doctor(folder: Path, *keys: dict[str, Any], **settings: str) -> tuple[int, list[str]]:
    """Return the exit code and the findings about service keys and JWTs."""
    home = new_home(folder, SERVICE_KEYS=json.dumps(keys), **settings)
    done = token_vault("doctor", folder=folder, settings=home.settings)
    assert done.stderr == ""
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    return done.returncode, [line for line in lines if " service keys " in line or " users' JWTs " in line]


def test_the_keys_that_reveal_every_user_are_named(tmp_path: Path) -> None:
    code, (_, named) = _doctor(tmp_path, EVERY)
    assert (code, named) == (0, "ok service keys jobs (bbbbbbbbbbbb): each reveals the tokens of every user")


def test_with_an_issuer_doctor_warns_if_no_key_needs_a_jwt(tmp_path: Path) -> None:
    secret = {"USER_JWT_ISSUER": ISSUER, "USER_JWT_SECRET": SECRET}
    code, (_, named, jwts) = _doctor(tmp_path, EVERY, **secret)
    assert (code, named.startswith("warn service keys jobs")) == (0, True)
    assert jwts.startswith("ok users' JWTs")
    assert "HS256" in jwts
    _, (_, named, _) = _doctor(tmp_path, EVERY, LIMITED, **secret)
    assert named.startswith("ok service keys jobs")
    assert "api" not in named


def test_keys_that_need_a_jwt_fail_without_an_issuer(tmp_path: Path) -> None:
    code, (_, jwts) = _doctor(tmp_path, LIMITED)
    assert code == 1
    assert jwts.startswith("FAIL users' JWTs USER_JWT_ISSUER is not set")
    assert "api (aaaaaaaaaaaa)" in jwts


def test_doctor_downloads_the_key_set(tmp_path: Path) -> None:
    with jwks_endpoint(new_signing_key(), new_signing_key("RS256")) as endpoint:
        code, (_, jwts) = _doctor(tmp_path, LIMITED, **endpoint.environment())
        assert (code, jwts) == (0, "ok users' JWTs the key set has 2 keys: ES256, RS256")
        endpoint.publish()
        code, (_, jwts) = _doctor(tmp_path, LIMITED, **endpoint.environment())
        assert code == 1
        assert "no public key" in jwts
        endpoint.stop()
        code, (_, jwts) = _doctor(tmp_path, LIMITED, **endpoint.environment())
        assert code == 1
        assert "cannot be reached" in jwts
