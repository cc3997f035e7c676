"""docs/ciphertext-formats.md: its decoder opens what the vault writes, and its example is true to the byte."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag

from app.security import formats as shape
from app.security.context import SecretField
from app.security.keyring import decode_key_text
from tests.support.paths import ROOT, VECTORS
from tests.support.security.keys import MASTER_KEY, OTHER_MASTER_KEY, keyring, service
from tests.support.vectors import KMS, LOCAL, as_file, kms_vectors, local_vectors

_DOCUMENT = (ROOT / "docs" / "ciphertext-formats.md").read_text()
_VECTORS = VECTORS
_BOUND = json.loads(LOCAL.read_text())
_ENVELOPES = json.loads(KMS.read_text())
_PULSEPLAN = [
    {**one, "master_key": block["master_key"]}
    for block in json.loads((_VECTORS / "pulseplan_local_tokens.json").read_text())
    for one in block["vectors"]
]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _DOCUMENT, re.DOTALL | re.MULTILINE)


def _named_values(block: str) -> dict[str, str]:
    """Read `name  value` lines; a line that starts with blanks continues the value above."""
    values: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        label, _, value = line.partition("  ")
        name = label or name
        values[name] = values.get(name, "") + value.strip()
    return values


def _context_of(vector: dict[str, Any]) -> list[str]:
    return [vector[name] or "" for name in ("user_id", "provider", "service_type", "field", "base_url")]


@pytest.fixture(scope="module")
def decoder() -> dict[str, Any]:
    [code] = _blocks("python")
    names: dict[str, Any] = {}
    exec(compile(code, "ciphertext-formats.md", "exec"), names)  # noqa: S102  what the page shows is what is tested
    return names


@pytest.fixture(scope="module")
def example() -> tuple[dict[str, str], ...]:
    return tuple(_named_values(block) for block in _blocks("text"))


def test_the_decoder_knows_nothing_of_the_vault() -> None:
    [code] = _blocks("python")
    assert set(re.findall(r"^(?:import|from) (.+)$", code, re.MULTILINE)) == {
        "base64, hashlib, hmac, json",
        "cryptography.hazmat.primitives.ciphers.aead import AESGCM",
    }


@pytest.mark.parametrize("field", list(SecretField))
@pytest.mark.parametrize("version", [1, 2])
def test_the_decoder_opens_what_the_vault_writes(decoder: dict[str, Any], version: int, field: SecretField) -> None:
    keys = {1: MASTER_KEY, 2: OTHER_MASTER_KEY}
    text = service(keyring(keys, primary=version)).encrypt_token(
        "ünïcödé ✓",
        "cd613e30-d8f1-4adf-91b7-584a2265b1f5",
        provider="google",
        service_type="gmail",
        field=field,
        base_url="https://x.test",
    )
    context = ("cd613e30-d8f1-4adf-91b7-584a2265b1f5", "google", "gmail")
    master_key = decoder["decode_master_key"](keys[version])
    assert decoder["open_local"](text, master_key, *context, field.value, "https://x.test") == "ünïcödé ✓"
    for elsewhere in (("another column", "https://x.test"), (field.value, "https://y.test"), (field.value,)):
        with pytest.raises(InvalidTag):
            decoder["open_local"](text, master_key, *context, *elsewhere)


def test_the_decoder_compares_the_commitment_before_it_decrypts(decoder: dict[str, Any]) -> None:
    text = service().encrypt_token("1234~a-token", "user-id-123")
    with pytest.raises(ValueError, match="not made with this key"):
        decoder["open_local"](text, decoder["decode_master_key"](MASTER_KEY), "another user")


def test_the_decoder_opens_what_a_script_writes(decoder: dict[str, Any]) -> None:
    text = service().encrypt_token("1234~a-token", "user-id-123")
    assert decoder["open_local"](text, decoder["decode_master_key"](MASTER_KEY), "user-id-123") == "1234~a-token"


def test_the_committed_vectors_are_what_the_generator_makes() -> None:
    assert LOCAL.read_text() == as_file(local_vectors())
    assert KMS.read_text() == as_file(kms_vectors())


@pytest.mark.parametrize("vector", _ENVELOPES, ids=lambda vector: str(vector["service_type"]))
def test_the_decoder_opens_the_committed_envelopes(decoder: dict[str, Any], vector: dict[str, Any]) -> None:
    def unwrap(wrapped: bytes, context: dict[str, str]) -> bytes:
        assert context == {"user_id": vector["user_id"], "service": "pulseplan", "data_type": "auth_token"}
        assert wrapped.hex() == vector["wrapped"]
        return bytes.fromhex(vector["data_key"])

    assert decoder["open_kms"](vector["ciphertext"], unwrap, *_context_of(vector)) == vector["plaintext"]


@pytest.mark.parametrize("vector", _BOUND, ids=lambda vector: f"v{vector['key_version']}-{vector['service_type']}")
def test_the_decoder_opens_the_committed_vectors(decoder: dict[str, Any], vector: dict[str, Any]) -> None:
    opened = decoder["open_local"](
        vector["ciphertext"],
        decoder["decode_master_key"](vector["master_key"]),
        *_context_of(vector),
    )
    assert opened == vector["plaintext"]


@pytest.mark.parametrize("vector", _PULSEPLAN, ids=lambda vector: str(vector["ciphertext"][:12]))
def test_the_decoder_opens_what_pulseplan_wrote(decoder: dict[str, Any], vector: dict[str, Any]) -> None:
    master_key = decoder["decode_master_key"](vector["master_key"])
    opened = decoder["open_pulseplan_local"](vector["ciphertext"], master_key, vector["user_id"])
    assert opened == vector["plaintext"]


@pytest.mark.parametrize("text", [MASTER_KEY, "no base64, taken as it is", "aGVsbG8", "k€y", " ag==\n"])
def test_the_decoder_reads_a_master_key_as_the_vault_does(decoder: dict[str, Any], text: str) -> None:
    assert decoder["decode_master_key"](text) == decode_key_text(text)


def test_the_example_is_a_committed_vector(example: tuple[dict[str, str], ...]) -> None:
    given, _, _, payload = example
    assert {
        "master_key": given["master key"],
        "key_version": 1,
        "user_id": given["user id"],
        "provider": given["provider"],
        "service_type": given["service type"],
        "field": given["field"],
        "base_url": given["base URL"],
        "plaintext": payload["plaintext"],
        "ciphertext": given["ciphertext"],
    } in _BOUND


def test_every_value_of_the_example_is_true(decoder: dict[str, Any], example: tuple[dict[str, str], ...]) -> None:
    given, derived, bound, payload = example
    master_key = decoder["decode_master_key"](given["master key"])
    version, _, encoded = given["ciphertext"].partition(":")
    context = (given["user id"], given["provider"], given["service type"], given["field"], given["base URL"])
    label = ("pulseplan-token-vault", "local/1")

    root, key, commitment = decoder["derive"](master_key, version, given["user id"])
    assert derived == {
        "root": root.hex(),
        "info": decoder["prefixed"](*label, given["user id"]).hex(),
        "AES-256 key": key.hex(),
        "commitment": commitment.hex(),
    }
    assert bound == {"aad": decoder["prefixed"](*label, version, *context).hex()}
    in_order = ("format", "commitment", "nonce", "body", "tag")
    assert "".join(payload[name] for name in in_order) == base64.urlsafe_b64decode(encoded + "==").hex()
    assert [len(payload[name]) // 2 for name in in_order] == [1, 32, 12, len(payload["plaintext"]), 16]
    assert decoder["open_local"](given["ciphertext"], master_key, *context) == payload["plaintext"]


def test_the_shapes_are_those_that_the_vault_dispatches_on() -> None:
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", _DOCUMENT, re.MULTILINE)
    family_of_shape = {shape_.strip("`"): family for shape_, family in rows}
    assert family_of_shape[shape._LOCAL.pattern] == "local, bound"  # noqa: SLF001  the page is held against the code's own pattern
    assert family_of_shape[shape._PULSEPLAN_LOCAL.pattern] == "PulsePlan local"  # noqa: SLF001  the page is held against the code's own pattern
    assert f"over {shape.MAXIMUM_CIPHERTEXT_CHARACTERS:,} characters".replace(",", " ") in _DOCUMENT
