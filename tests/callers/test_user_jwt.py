"""Verification of users' JWTs, against forged, foreign, expired and malformed ones."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from app.callers.jwks import JwksKeys
from app.callers.user_jwt import CACHE_SIZE, LEEWAY_SECONDS, SharedSecret, UserJwtVerifier, VerificationKeys
from app.errors import KeyUnavailable, UserJwtRefused
from app.observability.in_memory_counters import InMemoryUserJwtCounters
from tests.support.security.user_jwts import (
    ASYMMETRIC,
    AUDIENCE,
    ISSUER,
    SECRET,
    claims_of,
    key_set,
    new_signing_key,
    secret_jwt,
)

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
KEYS = {algorithm: new_signing_key(algorithm) for algorithm in ASYMMETRIC}


@dataclass(slots=True)
class Issuer:
    """An issuer whose key set is `document`, the clock that the vault reads, and the vault's verifier."""

    document: bytes = field(default_factory=lambda: key_set(*KEYS.values()))
    seconds: float = field(default_factory=time.time)
    monotonic: float = 0.0
    counters: InMemoryUserJwtCounters = field(default_factory=InMemoryUserJwtCounters)

    async def download(self) -> bytes:
        return self.document

    def verifier(self) -> UserJwtVerifier:
        keys = JwksKeys(download=self.download, counters=self.counters, monotonic=lambda: self.monotonic)
        return self.verifier_with(keys)

    def verifier_with(self, keys: VerificationKeys, *, cache_size: int = CACHE_SIZE) -> UserJwtVerifier:
        return UserJwtVerifier(
            issuer=ISSUER,
            audience=AUDIENCE,
            keys=keys,
            counters=self.counters,
            cache_size=cache_size,
            now=lambda: self.seconds,
        )


def _with_secret() -> UserJwtVerifier:
    return Issuer().verifier_with(SharedSecret(SECRET.encode()))


async def refused(verifier: UserJwtVerifier, token: str) -> str:
    with pytest.raises(UserJwtRefused) as caught:
        await verifier.user_of(token)
    assert len(token) < 20 or token not in str(caught.value)
    assert str(caught.value) == caught.value.problems[0][1]
    return caught.value.reason


def _encoded(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _hmac_signed(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """Sign with HMAC and any secret, which PyJWT refuses for a public key."""
    signed = f"{_encoded(header)}.{_encoded(claims)}"
    return f"{signed}.{_encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_a_jwt_of_the_issuer_names_its_user(algorithm: str) -> None:
    verifier = Issuer().verifier()
    assert await verifier.user_of(KEYS[algorithm].jwt(USER)) == USER
    assert await verifier.user_of(KEYS[algorithm].jwt(USER.upper())) == USER


async def test_a_jwt_under_the_shared_secret_names_its_user() -> None:
    assert await _with_secret().user_of(secret_jwt(USER)) == USER


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
async def test_an_unsigned_jwt_is_refused(name: str) -> None:
    for signature in ("", "AA"):
        unsigned = f"{_encoded({'alg': name, 'kid': KEYS['ES256'].key_id})}.{_encoded(claims_of(USER))}.{signature}"
        assert await refused(Issuer().verifier(), unsigned) == "algorithm"
        assert await refused(_with_secret(), unsigned) == "algorithm"


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_a_public_key_is_no_hmac_secret(algorithm: str) -> None:
    """The HS/RS confusion: everybody knows the public key, so a JWT signed with it as a secret proves nothing."""
    key = KEYS[algorithm]
    public = key.private.public_key()
    secrets = [json.dumps(key.public()).encode(), public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)]
    secrets.append(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for secret in [*secrets, secrets[-1].strip()]:
        for named in ("HS256", "HS384", "HS512"):
            forged = _hmac_signed({"alg": named, "kid": key.key_id}, claims_of(USER), secret)
            assert await refused(Issuer().verifier(), forged) == "algorithm"
        lying = _hmac_signed({"alg": algorithm, "kid": key.key_id}, claims_of(USER), secret)
        assert await refused(Issuer().verifier(), lying) == "signature"


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_an_asymmetric_jwt_is_refused_under_the_secret(algorithm: str) -> None:
    assert await refused(_with_secret(), KEYS[algorithm].jwt(USER)) == "algorithm"


async def test_a_key_serves_its_own_algorithm_only() -> None:
    for named in ASYMMETRIC:
        for other in (key for algorithm, key in KEYS.items() if algorithm != named):
            mixed = replace(KEYS[named], key_id=other.key_id).jwt(USER)
            assert await refused(Issuer().verifier(), mixed) == "unknown_key"
    wider = jwt.encode(claims_of(USER), KEYS["RS256"].private, "PS256", headers={"kid": KEYS["RS256"].key_id})
    assert await refused(Issuer().verifier(), wider) == "algorithm"


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_another_issuers_key_under_a_known_id_is_refused(algorithm: str) -> None:
    forged = replace(new_signing_key(algorithm), key_id=KEYS[algorithm].key_id).jwt(USER)
    assert await refused(Issuer().verifier(), forged) == "signature"


async def test_a_key_that_the_jwt_brings_along_is_not_used() -> None:
    foreign = new_signing_key()
    for headers in ({"jwk": foreign.public()}, {"jku": "https://evil.example/jwks"}, {"x5u": "https://evil.example/"}):
        assert await refused(Issuer().verifier(), foreign.jwt(USER, headers=headers)) == "unknown_key"


async def test_another_secret_is_refused() -> None:
    assert await refused(_with_secret(), secret_jwt(USER, SECRET[::-1])) == "signature"


async def test_a_jwt_without_a_key_id_is_refused() -> None:
    bare = jwt.encode(claims_of(USER), KEYS["ES256"].private, "ES256")
    assert await refused(Issuer().verifier(), bare) == "unknown_key"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": int(time.time()) - LEEWAY_SECONDS - 60}, "expired"),
        ({"exp": None}, "claims"),
        ({"exp": "soon"}, "malformed"),
        ({"sub": None}, "claims"),
        ({"sub": ""}, "claims"),
        ({"sub": "admin"}, "claims"),
        ({"sub": f"{USER} "}, "claims"),
        ({"sub": [USER]}, "claims"),
        ({"iss": None}, "claims"),
        ({"iss": "https://other.supabase.co/auth/v1"}, "claims"),
        ({"iss": f"{ISSUER}/"}, "claims"),
        ({"aud": None}, "claims"),
        ({"aud": "anon"}, "claims"),
        ({"aud": []}, "claims"),
        ({"nbf": int(time.time()) + 3600}, "claims"),
        ({"iat": int(time.time()) + 3600}, "claims"),
    ],
)
async def test_claims_of_another_kind_are_refused(changes: dict[str, Any], reason: str) -> None:
    claims = claims_of(USER, **changes)
    for verifier, token in (
        (Issuer().verifier(), _signed(claims)),
        (_with_secret(), _hmac_signed({"alg": "HS256", "typ": "JWT"}, claims, SECRET.encode())),
    ):
        assert await refused(verifier, token) == reason


def _signed(claims: dict[str, Any]) -> str:
    """Sign any claims, also those that PyJWT's own encoder refuses."""
    key = KEYS["ES256"]
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key.private, "ES256", headers={"kid": key.key_id})


async def test_a_jwt_ends_with_its_expiry_also_if_it_is_remembered() -> None:
    issuer = Issuer()
    verifier = issuer.verifier()
    token = KEYS["ES256"].jwt(USER, exp=int(issuer.seconds) + 60)
    assert await verifier.user_of(token) == USER
    issuer.seconds += 60 + LEEWAY_SECONDS - 2
    assert await verifier.user_of(token) == USER, "the leeway"
    issuer.seconds += 3
    assert await refused(verifier, token) == "expired"


async def test_a_remembered_jwt_ends_with_its_key() -> None:
    issuer = Issuer()
    verifier = issuer.verifier()
    leaked, kept = KEYS["ES256"], KEYS["RS256"]
    assert await verifier.user_of(leaked.jwt(USER)) == USER
    token = leaked.jwt(USER)
    assert await verifier.user_of(token) == USER
    issuer.document = key_set(kept)
    issuer.monotonic += 400.0
    assert await refused(verifier, new_signing_key().jwt(USER)) == "unknown_key"  # makes the vault look
    with pytest.raises(KeyUnavailable):
        await verifier.user_of(token)
    issuer.monotonic += 10.0
    assert await refused(verifier, token) == "unknown_key"
    assert await verifier.user_of(kept.jwt(USER)) == USER


async def test_remembered_jwts_are_bounded_and_stay_right() -> None:
    verifier = Issuer().verifier_with(SharedSecret(SECRET.encode()), cache_size=3)
    users = [USER.replace("cd61", f"{number:04d}") for number in range(10)]
    tokens = [secret_jwt(user) for user in users]
    for _ in range(2):
        assert [await verifier.user_of(token) for token in tokens] == users
        assert len(verifier._verified) == 3  # noqa: SLF001  shows how many are remembered


async def test_every_changed_character_is_refused() -> None:
    issuer = Issuer()
    verifier = issuer.verifier()
    for key in KEYS.values():
        token = key.jwt(USER)
        assert await verifier.user_of(token) == USER
        for place in range(0, len(token), 7):
            for other in ("A" if token[place] != "A" else "B", ".", ""):
                issuer.monotonic += 10.0  # a changed key id is looked for
                await refused(verifier, token[:place] + other + token[place + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "Bearer x",
        "x" * 9_000,
        "é.é.é",
        "e30.e30.e30",
        "W10.e30.",
        "bnVsbA.e30.",
        "a" * 6_000 + "..",
        "\x00.\x00.",
    ],
)
async def test_text_that_is_no_jwt_is_malformed(text: str) -> None:
    assert await refused(Issuer().verifier(), text) in {"malformed", "algorithm"}


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 4_000,
        b'{"alg":"ES256","kid":' + b"[" * 3_000,
        b'{"alg":"ES256","kid":["a"]}',
        b'{"alg":["ES256"],"kid":"a"}',
        b'{"alg":{"ES256":1}}',
        b'{"alg":"ES256","kid":"a","crit":["b64"],"b64":false}',
        b'{"alg":"ES256","kid":"a","crit":["exp"]}',
        b'{"alg":"ES256","kid":' + b"9" * 5_000 + b"}",
        b'{"alg":1e999}',
    ],
)
async def test_a_hostile_header_is_refused(header: bytes) -> None:
    await refused(Issuer().verifier(), f"{_encoded(header)}.{_encoded(claims_of(USER))}.AAAA")


@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]{1,90}(\.[A-Za-z0-9_-]{0,90}){1,3}", fullmatch=True))
def test_no_text_is_taken_for_a_jwt(text: str) -> None:
    asyncio.run(refused(Issuer().verifier(), text))


async def test_each_jwt_is_counted_by_its_outcome() -> None:
    issuer = Issuer()
    verifier = issuer.verifier()
    await verifier.user_of(KEYS["ES256"].jwt(USER))
    try:
        await verifier.user_of("x")
    except UserJwtRefused as error:
        verifier.refused(error)
    assert issuer.counters.counts == {"user_jwts.verified": 1, "user_jwts.malformed": 1, "key_set_downloads.success": 1}


async def test_no_jwt_and_no_secret_stays_in_the_verifier() -> None:
    verifier = _with_secret()
    token = secret_jwt(USER)
    await verifier.user_of(token)
    state = repr([getattr(verifier, name) for name in vars(verifier)])
    assert hashlib.sha256(token.encode()).digest() in verifier._verified  # noqa: SLF001  shows that it is remembered
    assert token not in state
    assert SECRET not in state
