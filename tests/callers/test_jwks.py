"""The issuer's key set: what is accepted of it, when it is downloaded, and what an outage does."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

from app.callers.jwks import (
    MAXIMUM_AGE_SECONDS,
    MAXIMUM_KEYS,
    RETRY_SECONDS,
    JwksKeys,
    KeySetError,
    parse_key_set,
)
from app.callers.jwks_download import download_key_set
from app.callers.user_jwt import UserJwtVerifier
from app.errors import KeyUnavailable, UserJwtRefused
from app.observability.in_memory_counters import InMemoryUserJwtCounters
from tests.support.process.certificates import tls_contexts
from tests.support.security.user_jwts import AUDIENCE, ISSUER, SigningKey, key_set, new_signing_key
from tests.support.stack.jwks import JwksEndpoint, jwks_endpoint
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.waiting import eventually_async

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
FIRST, SECOND = new_signing_key(), new_signing_key()
RSA = new_signing_key("RS256")


@dataclass(slots=True)
class Vault:
    """A vault that reads the endpoint, with a clock of the test."""

    endpoint: JwksEndpoint
    clock: float = 0.0
    counters: InMemoryUserJwtCounters = field(default_factory=InMemoryUserJwtCounters)
    keys: JwksKeys = field(init=False)
    verifier: UserJwtVerifier = field(init=False)

    def __post_init__(self) -> None:
        download = partial(download_key_set, self.endpoint.url, PLAIN_HTTP)
        self.keys = JwksKeys(download=download, counters=self.counters, monotonic=lambda: self.clock, look_seconds=0.02)
        self.verifier = UserJwtVerifier(issuer=ISSUER, audience=AUDIENCE, keys=self.keys, counters=self.counters)

    async def accepts(self, key: SigningKey) -> bool:
        """Whether the vault accepts the key; raises `KeyUnavailable` if it cannot know."""
        try:
            return await self.verifier.user_of(key.jwt(USER)) == USER
        except UserJwtRefused as error:
            if error.reason != "unknown_key":
                raise
            return False


@pytest.fixture
def endpoint() -> Iterator[JwksEndpoint]:
    with jwks_endpoint(FIRST, RSA) as endpoint:
        yield endpoint


@pytest.fixture
def vault(endpoint: JwksEndpoint) -> Vault:
    return Vault(endpoint)


async def test_concurrent_calls_share_one_download(vault: Vault) -> None:
    assert all(await asyncio.gather(*(vault.accepts(key) for key in (FIRST, RSA) * 50)))
    assert vault.endpoint.downloads == 1


async def test_known_keys_cause_no_download(vault: Vault) -> None:
    assert await vault.accepts(FIRST)
    vault.endpoint.stop()
    vault.clock += MAXIMUM_AGE_SECONDS / 2
    assert await vault.accepts(FIRST)
    assert await vault.accepts(RSA)


async def test_a_new_key_is_found_at_its_first_jwt(vault: Vault) -> None:
    assert await vault.accepts(FIRST)
    vault.endpoint.publish(FIRST, SECOND)
    vault.clock += RETRY_SECONDS
    assert all(await asyncio.gather(*(vault.accepts(SECOND) for _ in range(20))))
    assert vault.endpoint.downloads == 2


async def test_unknown_keys_cause_one_download_in_ten_seconds(vault: Vault) -> None:
    stranger = new_signing_key()
    for second in range(31):
        vault.clock = float(second)
        made_up = replace(stranger, key_id=f"made up {second}")
        if second % RETRY_SECONDS == 0:
            assert not await vault.accepts(made_up)
        else:
            with pytest.raises(KeyUnavailable):
                await vault.accepts(made_up)
    assert vault.endpoint.downloads == 4


async def test_a_key_newer_than_the_last_download_is_503_until_the_next(vault: Vault) -> None:
    assert not await vault.accepts(new_signing_key())
    vault.endpoint.publish(FIRST, SECOND)
    vault.clock += 3.5
    with pytest.raises(KeyUnavailable) as caught:
        await vault.accepts(SECOND)
    assert caught.value.retry_after_seconds == 7, "the rest of the ten seconds"
    assert await vault.accepts(FIRST)
    await vault.keys.check()
    vault.clock += caught.value.retry_after_seconds
    assert await vault.accepts(SECOND)
    assert vault.endpoint.downloads == 2


async def test_a_withdrawn_key_ends_at_the_next_download(vault: Vault) -> None:
    assert await vault.accepts(FIRST)
    vault.endpoint.publish(SECOND)
    vault.clock += RETRY_SECONDS
    assert await vault.accepts(SECOND)
    with pytest.raises(KeyUnavailable):
        await vault.accepts(FIRST)
    vault.clock += RETRY_SECONDS
    assert not await vault.accepts(FIRST)


@pytest.mark.parametrize("left", [b'{"keys": []}', key_set({**FIRST.public(), "use": "enc"})])
async def test_all_keys_that_the_issuer_withdraws_end_at_once(vault: Vault, left: bytes) -> None:
    token = FIRST.jwt(USER)
    assert await vault.verifier.user_of(token) == USER
    generation = vault.keys.generation()
    vault.endpoint.document = left
    vault.clock += RETRY_SECONDS
    with pytest.raises(KeyUnavailable, match="no public key"):
        await vault.keys.download_now()
    for refused in (token, FIRST.jwt(USER), SECOND.jwt(USER)):
        with pytest.raises(KeyUnavailable) as caught:
            await vault.verifier.user_of(refused)
        assert 1 <= caught.value.retry_after_seconds <= RETRY_SECONDS
    assert vault.keys.generation() is None
    vault.endpoint.publish(FIRST)
    vault.clock += RETRY_SECONDS
    assert await vault.accepts(FIRST)
    assert vault.keys.generation() not in {None, generation}, "no JWT from before is remembered"


async def test_run_downloads_before_any_call(vault: Vault) -> None:
    running = asyncio.create_task(vault.keys.run())
    await eventually_async(lambda: vault.counters.counts["key_set_downloads.success"] == 1)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await vault.keys.check()


async def test_a_failure_that_a_call_meets_is_retried_without_a_call(vault: Vault) -> None:
    keys = vault.keys
    running = asyncio.create_task(keys.run())
    await eventually_async(lambda: vault.counters.counts["key_set_downloads.success"] == 1)
    vault.endpoint.stop()
    vault.clock += RETRY_SECONDS
    with pytest.raises(KeyUnavailable):
        await vault.accepts(SECOND)
    vault.endpoint.start()
    vault.clock += RETRY_SECONDS
    await eventually_async(lambda: vault.counters.counts["key_set_downloads.success"] == 2)
    await keys.check()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_keys_outlive_an_outage_for_an_hour_and_no_longer(vault: Vault) -> None:
    token = FIRST.jwt(USER)
    assert await vault.verifier.user_of(token) == USER
    vault.endpoint.stop()
    vault.clock += MAXIMUM_AGE_SECONDS - 1
    assert await vault.accepts(FIRST)
    with pytest.raises(KeyUnavailable):  # whether the issuer has this key cannot be known now
        await vault.accepts(SECOND)
    with pytest.raises(KeyUnavailable):
        await vault.keys.check()
    vault.clock += 2
    with pytest.raises(KeyUnavailable):
        await vault.accepts(FIRST)
    with pytest.raises(KeyUnavailable):  # also if the vault remembers the JWT
        await vault.verifier.user_of(token)
    vault.endpoint.start()
    vault.clock += RETRY_SECONDS
    assert await vault.accepts(FIRST)
    await vault.keys.check()


async def test_an_endpoint_that_is_down_at_the_start_is_503_until_it_answers(vault: Vault) -> None:
    vault.endpoint.stop()
    with pytest.raises(KeyUnavailable) as caught:
        await vault.accepts(FIRST)
    assert 1 <= caught.value.retry_after_seconds <= RETRY_SECONDS
    vault.endpoint.start()
    with pytest.raises(KeyUnavailable):
        await vault.accepts(FIRST)
    assert vault.endpoint.downloads == 0, "not again within ten seconds"
    vault.clock += RETRY_SECONDS
    assert await vault.accepts(FIRST)


async def test_a_caller_that_leaves_does_not_end_the_download(vault: Vault) -> None:
    first = asyncio.create_task(vault.accepts(FIRST))
    second = asyncio.create_task(vault.accepts(FIRST))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert vault.endpoint.downloads == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"document": key_set(FIRST) + b" " * 65_536}, "more than 64 KiB"),
        ({"document": key_set(*[FIRST] * (MAXIMUM_KEYS + 1))}, "more than 32 keys"),
        ({"document": b"<html>"}, "not JSON"),
        ({"document": b"[" * 60_000}, "not JSON"),
        ({"document": b"[]"}, "no list of keys"),
        ({"document": b'{"keys": {}}'}, "no list of keys"),
        ({"status": 500}, "status 500"),
        ({"status": 404}, "status 404"),
        ({"status": 302, "headers": {"Location": "/auth/v1/.well-known/jwks.json"}}, "status 302"),
        ({"headers": {"Content-Encoding": "gzip"}}, "compressed"),
        ({"hangs": True}, "in time"),
    ],
)
async def test_a_wrong_answer_is_refused_and_the_keys_stay(vault: Vault, changes: dict[str, Any], words: str) -> None:
    assert await vault.accepts(FIRST)
    for name, value in changes.items():
        setattr(vault.endpoint, name, value)
    vault.clock += RETRY_SECONDS
    with pytest.raises(KeyUnavailable):
        await vault.accepts(SECOND)
    with pytest.raises(KeyUnavailable, match=words):
        await vault.keys.check()
    assert await vault.accepts(FIRST)


async def test_an_answer_that_never_ends_is_cut_off(vault: Vault) -> None:
    vault.endpoint.document = b'{"keys": [' + b" " * 5_000_000
    with pytest.raises(KeySetError, match="more than 64 KiB"):
        await download_key_set(vault.endpoint.url, PLAIN_HTTP)


async def test_a_certificate_that_nobody_trusts_is_refused(tmp_path: Path) -> None:
    trusting, issuers = tls_contexts(tmp_path)
    with jwks_endpoint(FIRST, tls=issuers) as endpoint:
        with pytest.raises(KeySetError, match="cannot be reached"):
            await download_key_set(endpoint.url, ssl.create_default_context())
        assert endpoint.downloads == 0
        assert await download_key_set(endpoint.url, trusting) == endpoint.document


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"alg": "RS384"},
        {"alg": "HS256"},
        {"kid": None},
        {"kid": ""},
        {"kid": 7},
        {"kty": "oct", "k": "AAAA"},
        {"kty": ["RSA"]},
        {"n": "AQAB"},
        {"n": 7},
        {"d": "AQAB"},
        {"crv": "P-256"},
    ],
)
def test_a_key_for_another_purpose_is_left_out(change: dict[str, Any]) -> None:
    document = json.loads(key_set(FIRST, RSA))
    document["keys"][1] |= change
    assert list(parse_key_set(json.dumps(document).encode())) == [("ES256", FIRST.key_id)]


def test_a_private_key_is_left_out() -> None:
    document = json.loads(key_set(FIRST, SECOND))
    document["keys"][1] |= json.loads(ECAlgorithm.to_jwk(SECOND.private))
    assert list(parse_key_set(json.dumps(document).encode())) == [("ES256", FIRST.key_id)]


def test_a_key_that_openssl_does_not_support_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: object) -> None:
        raise UnsupportedAlgorithm("ed25519 is not supported by this version of OpenSSL.")

    document = key_set(new_signing_key("EdDSA"), FIRST)
    monkeypatch.setattr(
        OKPAlgorithm, "from_jwk", staticmethod(unsupported)
    )  # as cryptography does with OpenSSL in FIPS mode
    assert list(parse_key_set(document)) == [("ES256", FIRST.key_id)]


def test_a_short_rsa_key_is_left_out() -> None:
    assert list(parse_key_set(key_set(FIRST, new_signing_key("RS256", bits=1024)))) == [("ES256", FIRST.key_id)]


def test_members_that_the_vault_does_not_know_are_ignored() -> None:
    keys = parse_key_set(key_set({**FIRST.public(), "x5t": "a", "made": 1}, {"kty": "new"}, RSA))
    assert len(keys) == 2
