"""The bound local format: what is its own, beside the contract of every strategy."""

from __future__ import annotations

import base64
import itertools
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import IntegrityError, KeyDenied, MalformedCiphertext
from app.observability.in_memory_counters import InMemoryCounters
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.security.local_strategy import LocalStrategy
from app.security.schemes import scheme_of
from app.security.strategy import KeyNotCached
from tests.support.paths import VECTORS
from tests.support.security.keys import MASTER_KEY, OTHER_MASTER_KEY, keyring, service
from tests.support.sizes import size

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
HERE = TokenContext(USER, "canvas", "default", SecretField.ACCESS_TOKEN)
TOKEN = "1234~a-canvas-token"
REFUSED = (IntegrityError, MalformedCiphertext, KeyDenied)

_VECTORS = json.loads((VECTORS / "local_bound_tokens.json").read_text())


@pytest.fixture(scope="module")
def crypto() -> EncryptionService:
    return service(keyring({1: MASTER_KEY, 2: OTHER_MASTER_KEY}))


@pytest.fixture(scope="module")
def sealed(crypto: EncryptionService) -> str:
    return crypto.seal(TOKEN, HERE).ciphertext


@pytest.mark.parametrize("vector", _VECTORS, ids=lambda vector: f"v{vector['key_version']}-{vector['service_type']}")
def test_the_committed_ciphertexts_open(vector: dict[str, str]) -> None:
    opened = service(keyring({int(vector["key_version"]): vector["master_key"]})).decrypt_token(
        vector["ciphertext"],
        vector["user_id"],
        provider=vector["provider"],
        service_type=vector["service_type"],
        field=SecretField(vector["field"]) if vector["field"] else None,
        base_url=vector["base_url"],
    )
    assert opened == vector["plaintext"]


def test_every_flipped_bit_of_the_payload_is_rejected(crypto: EncryptionService, sealed: str) -> None:
    name, _, encoded = sealed.partition(":")
    payload = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    for position, bit in itertools.product(range(len(payload)), range(8)):
        flipped = bytearray(payload)
        flipped[position] ^= 1 << bit
        changed = f"{name}:{base64.urlsafe_b64encode(flipped).rstrip(b'=').decode()}"
        with pytest.raises(REFUSED):
            crypto.open(changed, HERE)


@pytest.mark.parametrize("suffix", ["\n", " ", "==", "v2:"])
def test_nothing_can_be_appended(crypto: EncryptionService, sealed: str, suffix: str) -> None:
    with pytest.raises(REFUSED):
        crypto.open(sealed + suffix, HERE)


def test_a_ciphertext_opens_under_no_other_key_version(crypto: EncryptionService, sealed: str) -> None:
    assert sealed.startswith("v2:")
    with pytest.raises(IntegrityError):
        crypto.open("v1:" + sealed.removeprefix("v2:"), HERE)
    with pytest.raises(KeyDenied):
        crypto.open("v3:" + sealed.removeprefix("v2:"), HERE)


def test_one_master_key_under_two_versions_makes_two_keys() -> None:
    twice = service(keyring({1: MASTER_KEY, 2: MASTER_KEY}, primary=1))
    ciphertext = twice.seal(TOKEN, HERE).ciphertext
    with pytest.raises(IntegrityError, match="not made with this key"):
        twice.open("v2:" + ciphertext.removeprefix("v1:"), HERE)


def test_a_ciphertext_commits_to_its_key(crypto: EncryptionService) -> None:
    """A ciphertext that another key would open is refused for its commitment, before anything is decrypted."""
    foreign = service(keyring({2: MASTER_KEY})).seal(TOKEN, HERE).ciphertext
    with pytest.raises(IntegrityError, match="not made with this key"):
        crypto.open(foreign, HERE)


def test_previous_keys_decrypt_and_the_primary_one_encrypts() -> None:
    before = service(keyring({1: MASTER_KEY}))
    after = service(keyring({1: MASTER_KEY, 2: OTHER_MASTER_KEY}))
    old = before.seal(TOKEN, HERE)
    new = after.seal(TOKEN, HERE)
    assert (old.scheme, old.method) == ("local:v1", "aes256-gcm-v1")
    assert (new.scheme, new.method) == ("local:v2", "aes256-gcm-v2")
    assert after.open(old.ciphertext, HERE) == TOKEN
    assert scheme_of(new.ciphertext) == after.primary_scheme
    assert scheme_of(old.ciphertext) != after.primary_scheme


def test_a_version_below_the_minimum_is_refused() -> None:
    old = service(keyring({1: MASTER_KEY})).seal(TOKEN, HERE).ciphertext
    with pytest.raises(KeyDenied, match="MIN_KEY_VERSION"):
        service(keyring({1: MASTER_KEY, 2: OTHER_MASTER_KEY}, minimum=2)).open(old, HERE)


@pytest.mark.parametrize(
    "nonsense",
    [
        *["", "x", "v1:", "v0:AAAA", "v01:AAAA", "v1:AAAA:BBBB", "v1:AA AA", "v1:AAÄA", "v9999999999:AAAA"],
        *["kms:", "kms:{}", "{}", "null", '{"algorithm": "AES"}', 'kms:{"fmt":2}', 'kms:{"fmt":true}', "kms:[1]"],
        *['{"algorithm":"KMS","ciphertext":"eA=="}', 'kms:{"algorithm":"KMS","ciphertext":"eA=="}'],
        pytest.param("{" * 100_000, id="100 000 brackets"),
        pytest.param("v1:" + "A" * 500_000, id="half a megabyte"),
    ],
)
def test_a_text_of_no_known_format_is_malformed(crypto: EncryptionService, nonsense: str) -> None:
    with pytest.raises(MalformedCiphertext):
        crypto.open(nonsense, HERE)


def test_a_kms_ciphertext_without_kms_is_denied(crypto: EncryptionService) -> None:
    with pytest.raises(KeyDenied, match="KMS"):
        crypto.open('kms:{"fmt":1}', HERE)


def test_a_changed_family_never_opens(crypto: EncryptionService, sealed: str) -> None:
    encoded = sealed.partition(":")[2]
    for text in (f"kms:{encoded}", encoded, f"v2:{encoded.encode().hex()}:00:00"):
        with pytest.raises(REFUSED):
            crypto.open(text, HERE)


_SHARED = service()


@given(st.binary(max_size=120))
def test_any_payload_is_refused_with_one_of_our_errors(payload: bytes) -> None:
    with pytest.raises(REFUSED):
        _SHARED.open(f"v1:{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}", HERE)


def test_nonces_never_repeat() -> None:
    strategy = LocalStrategy(keyring=keyring())
    number = size(50_000, 1_000_000)
    nonces = set()
    for _ in range(number):
        payload = strategy.seal("x", HERE).ciphertext.partition(":")[2]
        # the nonce, bytes 33 to 45 of the payload, is exactly characters 44 to 60 of its base64
        nonces.add(payload[44:60])
    assert len(nonces) == number


def test_the_root_key_is_derived_once_for_all_threads() -> None:
    strategy = LocalStrategy(keyring=keyring())
    with pytest.raises(KeyNotCached):
        strategy.seal(TOKEN, HERE, wait=False)
    sealed: list[str] = []
    threads = [threading.Thread(target=lambda: sealed.append(strategy.seal(TOKEN, HERE).ciphertext)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert strategy.open(strategy.seal(TOKEN, HERE, wait=False).ciphertext, HERE, wait=False) == TOKEN
    assert [strategy.open(one, HERE) for one in sealed] == [TOKEN] * 8


def test_keys_and_plaintexts_show_in_no_repr(crypto: EncryptionService, sealed: str) -> None:
    keys = keyring()
    shown = repr((keys, crypto, crypto.seal(TOKEN, HERE)))
    assert TOKEN not in shown
    assert repr(keys.key(1)) not in shown
    with pytest.raises(IntegrityError) as caught:
        crypto.open(sealed, TokenContext("somebody else"))
    assert TOKEN not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_the_self_test_counts_no_failure() -> None:
    counters = InMemoryCounters()
    EncryptionService(primary=LocalStrategy(keyring=keyring()), counters=counters).self_test()
    assert counters.counts == {}
