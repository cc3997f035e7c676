"""Tokens that PulsePlan really wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from app.errors import IntegrityError, KeyDenied, MalformedCiphertext
from app.security.context import TokenContext
from app.security.encryption_service import EncryptionService
from app.security.formats import Family, families_of, family_of
from app.security.keyring import decode_key_text
from tests.support.paths import VECTORS
from tests.support.security.keys import MASTER_KEY, keyring, service
from tests.support.sizes import size

_FILE = VECTORS / "pulseplan_local_tokens.json"


@dataclass(frozen=True, slots=True)
class Vector:
    master_key: str
    key_version: int
    user_id: str
    plaintext: str
    ciphertext: str

    def service(self) -> EncryptionService:
        return service(keyring({self.key_version: self.master_key}))


_TOKENS = [
    Vector(block["master_key"], block["key_version"], one["user_id"], one["plaintext"], one["ciphertext"])
    for block in json.loads(_FILE.read_text())
    for one in block["vectors"]
]
every_vector = pytest.mark.parametrize("vector", _TOKENS, ids=lambda vector: f"{vector.ciphertext[:12]}")


def test_there_are_vectors_of_every_shape() -> None:
    assert len(_TOKENS) >= 25
    assert {vector.ciphertext.count(":") for vector in _TOKENS} == {2, 3}
    assert {vector.key_version for vector in _TOKENS} == {1, 2}


@every_vector
def test_it_opens_with_its_master_key(vector: Vector) -> None:
    assert vector.service().decrypt_token(vector.ciphertext, vector.user_id) == vector.plaintext


@every_vector
def test_it_does_not_open_for_another_user(vector: Vector) -> None:
    with pytest.raises(IntegrityError):
        vector.service().decrypt_token(vector.ciphertext, "00000000-0000-4000-8000-000000000000")


@every_vector
def test_it_does_not_open_with_another_key(vector: Vector) -> None:
    others = service(keyring({vector.key_version: "another master key, also 32 byt!"}))
    with pytest.raises(IntegrityError):
        others.decrypt_token(vector.ciphertext, vector.user_id)


@every_vector
def test_a_changed_character_is_rejected(vector: Vector) -> None:
    reader = vector.service()
    positions = range(0, len(vector.ciphertext), size(7, 1))
    for position, character in ((position, vector.ciphertext[position]) for position in {*range(40), *positions}):
        for other in {"0" if character != "0" else "1", character.upper(), ":", "g"} - {character}:
            changed = vector.ciphertext[:position] + other + vector.ciphertext[position + 1 :]
            with pytest.raises((IntegrityError, MalformedCiphertext, KeyDenied)):
                reader.decrypt_token(changed, vector.user_id)


@every_vector
def test_a_truncated_ciphertext_is_rejected(vector: Vector) -> None:
    reader = vector.service()
    for length in range(1, len(vector.ciphertext), size(3, 1)):
        with pytest.raises((IntegrityError, MalformedCiphertext)):
            reader.decrypt_token(vector.ciphertext[:length], vector.user_id)


def test_an_empty_token_passes_through() -> None:
    assert service().encrypt_token("", "user") == ""
    assert service().decrypt_token("", "user") == ""


def test_legacy_formats_are_refused_when_switched_off() -> None:
    vector = _TOKENS[0]
    with pytest.raises(KeyDenied, match="switched off"):
        service(keyring({1: vector.master_key}), legacy=False).decrypt_token(vector.ciphertext, vector.user_id)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("claim", ["pulseplan-local:v1", "local:v1", ""])
def test_one_under_any_claim_is_an_integrity_error(claim: str, *, legacy: bool) -> None:
    """Only rows of PulsePlan's hold these formats, and they name no scheme."""
    vector = _TOKENS[0]
    reader, context = service(keyring({1: vector.master_key}), legacy=legacy), TokenContext(vector.user_id)
    with pytest.raises(IntegrityError, match="scheme"):
        reader.open(vector.ciphertext, context, claimed=claim)


def test_the_family_of_an_opened_ciphertext_is_that_of_its_form() -> None:
    texts = [*(vector.ciphertext for vector in _TOKENS), service().encrypt_token("token", "user"), 'kms:{"fmt": 1}']
    assert [families_of(text) for text in texts] == [(family_of(text),) for text in texts]
    assert families_of(*texts, None) == (Family.PULSEPLAN_LOCAL, Family.LOCAL, Family.KMS)


def test_a_version_below_the_minimum_is_refused_even_after_it_was_read() -> None:
    vector = _TOKENS[0]
    keys = {1: vector.master_key, 2: MASTER_KEY}
    assert service(keyring(keys)).decrypt_token(vector.ciphertext, vector.user_id) == vector.plaintext
    with pytest.raises(KeyDenied, match="MIN_KEY_VERSION"):
        service(keyring(keys, minimum=2)).decrypt_token(vector.ciphertext, vector.user_id)


def test_a_ciphertext_without_a_version_has_version_1() -> None:
    unversioned = next(vector for vector in _TOKENS if vector.ciphertext.count(":") == 2)
    with pytest.raises(KeyDenied):
        service(keyring({2: unversioned.master_key})).decrypt_token(unversioned.ciphertext, unversioned.user_id)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (MASTER_KEY, bytes.fromhex("236af8f4b9efc7312e5f258a20041e2836d02e8240161f72dcaf363833c33300")),
        ("dev-only master key, not base64!", b"dev-only master key, not base64!"),
        ("I2r49Lnv xzEu\nXyWKIAQeKDbQLoJAFh9y3K82ODPDMwA=", decode_key_text(MASTER_KEY)),
    ],
    ids=["base64", "raw", "base64 with characters to drop"],
)
def test_key_text_is_decoded_as_cpython_does(text: str, key: bytes) -> None:
    assert decode_key_text(text) == key
