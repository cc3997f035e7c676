"""PulsePlan's own KMS packages: they open for their user, and for nobody else."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ContextMismatch, IntegrityError, KeyDenied, MalformedCiphertext
from app.security.strategy import KeyNotCached
from tests.support.security.envelopes import (
    HERE,
    OTHER_USER,
    TOKEN,
    USER,
    Envelope,
    any_json,
    direct_package,
    envelope,
    package_text,
)
from tests.support.stack.kms import Kms

CONTEXT = {"user_id": USER, "service": "pulseplan", "data_type": "auth_token"}


@pytest.fixture
def here(kms: Kms) -> Envelope:
    return envelope(kms)


@pytest.fixture(scope="module")
def shared(kms_server: Kms) -> Envelope:
    """One whose KMS key nobody touches, for tests that ask much and change nothing."""
    kms_server.renew()
    return envelope(kms_server, key_id=kms_server.create_key())


@pytest.mark.parametrize("prefix", ["", "kms:"])
@pytest.mark.parametrize("plaintext", [TOKEN, "ünïcödé 😀", "x" * 4096])
def test_a_direct_package_opens(kms: Kms, here: Envelope, prefix: str, plaintext: str) -> None:
    text = package_text(direct_package(kms, plaintext), prefix=prefix)
    assert here.open(text) == plaintext
    assert here.service.decrypt_token(text, USER) == plaintext, "it is bound to its user alone"
    assert here.service.scheme_of(text) != here.service.primary_scheme
    assert kms.operations() == ["Decrypt"] * 2
    with pytest.raises(KeyNotCached):
        here.service.open(text, HERE, wait=False)


def test_a_direct_package_of_a_previous_key_opens(kms: Kms) -> None:
    text = package_text(direct_package(kms))
    assert envelope(kms, key_id=kms.create_key(), previous_key_ids=[kms.key_arn]).open(text) == TOKEN
    with pytest.raises(KeyDenied):
        envelope(kms, key_id=kms.create_key()).open(text)


@pytest.mark.parametrize(
    "context",
    [
        *[{**CONTEXT, "user_id": OTHER_USER}, {**CONTEXT, "service": "other"}, {**CONTEXT, "extra": "x"}, {}, None],
        *[{"user_id": USER}, [], "x", 1, {**CONTEXT, "user_id": None}, {**CONTEXT, "user_id": [USER]}],
    ],
)
def test_a_direct_package_with_another_stored_context_is_a_mismatch(kms: Kms, here: Envelope, context: Any) -> None:
    with pytest.raises(ContextMismatch):
        here.open(package_text(direct_package(kms, encryption_context=context)))
    assert kms.requests == []


def test_a_direct_package_whose_context_was_rewritten_is_refused_by_kms(kms: Kms, here: Envelope) -> None:
    theirs = direct_package(kms, user_id=OTHER_USER)
    with pytest.raises(ContextMismatch):
        here.open(package_text(theirs))
    with pytest.raises(IntegrityError):
        here.open(package_text(theirs | {"encryption_context": CONTEXT}))


@pytest.mark.parametrize(
    "ciphertext",
    [
        *[None, 1, True, "", [], {}, "ü", "AAA", "A", "!!!!", "AA AA", "AA\nAA", "\ud800", "AA-_"],
        pytest.param(base64.b64encode(bytes(6145)).decode(), id="larger than any blob"),
    ],
)
def test_a_direct_package_with_garbage_is_malformed(kms: Kms, here: Envelope, ciphertext: Any) -> None:
    members: dict[str, Any] = {"algorithm": "KMS", "encryption_context": CONTEXT, "ciphertext": ciphertext}
    with pytest.raises(MalformedCiphertext):
        here.open(package_text(members))
    del members["ciphertext"]
    with pytest.raises(MalformedCiphertext):
        here.open(package_text(members))
    assert kms.requests == []


@pytest.mark.parametrize("blob", [b"x", b"x" * 100, bytes(6144)])
def test_a_direct_package_with_a_foreign_blob_does_not_authenticate(kms: Kms, here: Envelope, blob: bytes) -> None:
    with pytest.raises(IntegrityError):
        here.open(package_text(direct_package(kms, ciphertext=base64.b64encode(blob).decode())))


def test_a_direct_package_that_holds_no_text_is_refused(kms: Kms, here: Envelope) -> None:
    blob = kms.encrypt(kms.key_arn, b"\xff\xfe", CONTEXT)
    with pytest.raises(IntegrityError, match="not text"):
        here.open(package_text(direct_package(kms, ciphertext=base64.b64encode(blob).decode())))


@given(members=st.dictionaries(st.sampled_from(["ciphertext", "key_id", "encryption_context", "x"]), any_json))
@settings(deadline=None)
def test_any_direct_package_is_refused_with_one_of_our_errors(shared: Envelope, members: dict[str, Any]) -> None:
    with pytest.raises((IntegrityError, MalformedCiphertext, ContextMismatch)):
        shared.open(package_text({"algorithm": "KMS", **members}))
