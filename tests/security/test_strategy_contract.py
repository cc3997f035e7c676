"""The contract of encryption strategies, local and KMS."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import IntegrityError, InvalidRequest, KeyDenied, MalformedCiphertext
from app.observability.in_memory_counters import InMemoryCounters
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.security.local_strategy import LocalStrategy
from app.security.schemes import scheme_of
from app.security.strategy import EncryptionStrategy, KeyNotCached
from tests.support.security.envelopes import HERE, OTHER_USER, TOKEN, USER, envelope
from tests.support.security.keys import keyring
from tests.support.sizes import size
from tests.support.stack.kms import Kms

REFUSED = (IntegrityError, MalformedCiphertext, KeyDenied)
text = st.text(st.characters(exclude_categories=["Cs"]))


@dataclass(frozen=True, slots=True)
class Implementation:
    """A strategy with cached keys, a factory of strategies without, and what it writes into a row."""

    strategy: EncryptionStrategy
    cold: Callable[[], EncryptionStrategy]
    scheme: str
    method: str
    key_id: str | None

    @property
    def service(self) -> EncryptionService:
        return EncryptionService(primary=self.strategy, counters=InMemoryCounters())


@pytest.fixture(scope="module", params=["local", "kms"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    if request.param == "local":
        keys = keyring()
        local = LocalStrategy(keyring=keys)
        local.seal(TOKEN, HERE)
        return Implementation(local, lambda: LocalStrategy(keyring=keys), "local:v1", "aes256-gcm-v1", None)
    server: Kms = request.getfixturevalue("kms_server")
    server.renew()
    key_arn = server.key_arn
    kms = envelope(server, key_id=key_arn).strategy
    kms.seal(TOKEN, HERE)
    key_id = rf"canvas_kms_{USER}_[0-9a-f]{{16}}"
    return Implementation(kms, lambda: envelope(server, key_id=key_arn).strategy, f"kms:{key_arn}", "kms", key_id)


@given(
    plaintext=text,
    user_id=text,
    provider=text,
    service_type=text,
    field=st.sampled_from([*SecretField, None]),
    base_url=text | st.just("\ud800"),
)
@settings(deadline=None, max_examples=size(15, 50))
def test_a_ciphertext_opens_again(  # noqa: PLR0917  Hypothesis gives them by keyword
    implementation: Implementation,
    plaintext: str,
    user_id: str,
    provider: str,
    service_type: str,
    field: SecretField | None,
    base_url: str,
) -> None:
    context = TokenContext(user_id, provider, service_type, field, base_url)
    strategy = implementation.strategy
    assert strategy.open(strategy.seal(plaintext, context).ciphertext, context) == plaintext


@pytest.mark.parametrize("length", [0, 1, 4096, 4097, 16_384])
@pytest.mark.parametrize("character", ["x", "😀"])
def test_tokens_of_every_allowed_length_open_again(implementation: Implementation, length: int, character: str) -> None:
    """KMS itself takes 4 096 bytes; a token of the API has up to 16 384 characters."""
    token = character * length
    assert implementation.service.open(implementation.service.seal(token, HERE).ciphertext, HERE) == token


def test_no_two_ciphertexts_are_equal(implementation: Implementation) -> None:
    assert len({implementation.strategy.seal(TOKEN, HERE).ciphertext for _ in range(100)}) == 100


def test_a_ciphertext_names_its_scheme_and_method(implementation: Implementation) -> None:
    strategy = implementation.strategy
    sealed = strategy.seal(TOKEN, HERE)
    assert (sealed.scheme, sealed.method) == (implementation.scheme, implementation.method)
    assert strategy.scheme == scheme_of(sealed.ciphertext) == sealed.scheme
    assert scheme_of(sealed.ciphertext) == implementation.service.primary_scheme
    if implementation.key_id is None:
        assert sealed.key_id is None
    else:
        assert re.fullmatch(implementation.key_id, sealed.key_id or "")


def test_a_claim_of_another_scheme_is_an_integrity_error(implementation: Implementation) -> None:
    sealed = implementation.service.seal(TOKEN, HERE)
    for claim in (None, sealed.scheme):
        assert implementation.service.open(sealed.ciphertext, HERE, claimed=claim) == TOKEN
    for claim in ("", "local:v2", "pulseplan-local:v1", "kms:another", f"{sealed.scheme}0"):
        with pytest.raises(IntegrityError, match="scheme"):
            implementation.service.open(sealed.ciphertext, HERE, claimed=claim)


def test_every_flipped_bit_is_rejected(implementation: Implementation) -> None:
    service = implementation.service
    sealed = service.seal("t", HERE).ciphertext
    every_flip = list(itertools.product(range(len(sealed)), range(8)))
    for position, bit in every_flip[:: size(5, 1)]:  # 5 and 8 have no common divisor, so each bit and each place is hit
        flipped = sealed[:position] + chr(ord(sealed[position]) ^ (1 << bit)) + sealed[position + 1 :]
        with pytest.raises(REFUSED):
            service.open(flipped, HERE)


def test_every_truncation_is_rejected(implementation: Implementation) -> None:
    service = implementation.service
    sealed = service.seal(TOKEN, HERE).ciphertext
    prefix = sealed[: sealed.index(":") + 1]
    for length in range(len(sealed)):
        with pytest.raises(REFUSED):
            service.open(sealed[:length], HERE)
    for start in range(len(prefix) + 1, len(sealed)):
        with pytest.raises(REFUSED):
            service.open(prefix + sealed[start:], HERE)


@pytest.mark.parametrize("suffix", ["=", "A", "}", "\0", "v1:", "kms:"])
def test_nothing_can_be_appended(implementation: Implementation, suffix: str) -> None:
    sealed = implementation.service.seal(TOKEN, HERE).ciphertext
    with pytest.raises(REFUSED):
        implementation.service.open(sealed + suffix, HERE)


def test_a_ciphertext_opens_in_no_other_context(implementation: Implementation) -> None:
    places = [
        TokenContext(user, provider, service_type, field, base_url)
        for user in (USER, OTHER_USER, "")
        for provider in ("canvas", "")
        for service_type in ("default", "")
        for field in (*SecretField, None)
        for base_url in ("https://canvas.example.edu", "https://attacker.example", "")
    ]
    strategy = implementation.strategy
    sealed = {place: strategy.seal(TOKEN, place).ciphertext for place in places}
    for here, there in itertools.product(places, repeat=2):
        if here == there:
            assert strategy.open(sealed[here], there) == TOKEN
        else:
            with pytest.raises(IntegrityError):
                strategy.open(sealed[here], there)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (TokenContext("u", "ab", "c"), TokenContext("u", "a", "bc")),
        (TokenContext("ab", "c"), TokenContext("a", "bc")),
        (TokenContext("u", "a_kms_u"), TokenContext("u_kms_u", "a")),
        (TokenContext("u_kms_v", "a"), TokenContext("v", "a_kms_u")),
        (TokenContext("u", "a", "b", None, "c"), TokenContext("u", "a", "bc")),
        (TokenContext("u", "a", "b", None, "access_token"), TokenContext("u", "a", "b", SecretField.ACCESS_TOKEN)),
    ],
)
def test_parts_of_the_context_cannot_trade_characters(
    implementation: Implementation, here: TokenContext, there: TokenContext
) -> None:
    sealed = implementation.strategy.seal(TOKEN, here).ciphertext
    with pytest.raises(IntegrityError):
        implementation.strategy.open(sealed, there)


def test_sixteen_threads_share_a_strategy(implementation: Implementation) -> None:
    strategy = implementation.cold()

    def work(worker: int) -> list[bool]:
        opened = []
        for number in range(50):
            # half of the contexts are shared by all threads, half are each thread's own
            user = USER if number % 2 else f"user-{worker}"
            context = TokenContext(user, "canvas", str(number % 5), SecretField.ACCESS_TOKEN)
            plaintext = f"{worker}-{number}"
            opened.append(strategy.open(strategy.seal(plaintext, context).ciphertext, context) == plaintext)
        return opened

    with ThreadPoolExecutor(16) as threads:
        for opened in threads.map(work, range(16)):
            assert opened == [True] * 50


def test_without_waiting_a_key_must_be_cached(implementation: Implementation) -> None:
    sealed = implementation.strategy.seal(TOKEN, HERE).ciphertext
    sealing, opening = implementation.cold(), implementation.cold()
    for _ in range(2):  # the first call fetches no key
        with pytest.raises(KeyNotCached):
            sealing.seal(TOKEN, HERE, wait=False)
        with pytest.raises(KeyNotCached):
            opening.open(sealed, HERE, wait=False)
    assert opening.open(sealed, HERE) == TOKEN
    assert opening.open(sealed, HERE, wait=False) == TOKEN
    own = sealing.seal(TOKEN, HERE).ciphertext
    assert sealing.seal(TOKEN, HERE, wait=False).method == implementation.method
    assert sealing.open(own, HERE, wait=False) == TOKEN


@pytest.mark.parametrize(("token", "user"), [("\ud800", USER), ("token", "\udfff")])
def test_lone_surrogates_are_refused(implementation: Implementation, token: str, user: str) -> None:
    with pytest.raises(InvalidRequest):
        implementation.service.encrypt_token(token, user)


@given(st.text(max_size=300))
@settings(deadline=None)
def test_any_text_is_refused_with_one_of_our_errors(implementation: Implementation, ciphertext: str) -> None:
    with pytest.raises(REFUSED):
        implementation.service.open(ciphertext, HERE)


def test_no_plaintext_shows_in_an_error(implementation: Implementation) -> None:
    sealed = implementation.service.seal(TOKEN, HERE)
    assert TOKEN not in repr((sealed, implementation.strategy))
    with pytest.raises(IntegrityError) as caught:
        implementation.service.open(sealed.ciphertext, TokenContext(OTHER_USER))
    assert TOKEN not in repr(caught.value)
    assert caught.value.__cause__ is None
