"""The data-key cache: age, messages and size of what it keeps, and one request for concurrent callers."""

from __future__ import annotations

import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import SecretStr

from app.errors import IntegrityError, KeyUnavailable
from app.observability.in_memory_counters import InMemoryCounters
from app.security.aead import CommittingAead
from app.security.context import SecretField, TokenContext, length_prefixed
from app.security.kms.data_key_cache import DataKey, DataKeyCache, ExpiringLru, fingerprint
from app.security.strategy import KeyNotCached
from app.tokens.cipher import Binding, TokenCipher
from app.tokens.models import TokenId
from tests.support.security.clock import Clock
from tests.support.security.envelopes import (
    HERE,
    OTHER_USER,
    TOKEN,
    USER,
    changed,
    decode,
    encode,
    envelope,
    members_of,
)
from tests.support.sizes import size
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import KmsFault, Reply
from tests.support.waiting import eventually

GENERATE, DECRYPT = "GenerateDataKey", "Decrypt"
CROWD = size(100, 1000)


@pytest.fixture
def sealed(kms: Kms) -> str:
    ciphertext = envelope(kms).seal()
    kms.forget_requests()
    return ciphertext


def flipped(ciphertext: str) -> str:
    data = bytearray(decode(members_of(ciphertext)["ct"]))
    data[0] ^= 1
    return changed(ciphertext, ct=encode(bytes(data)))


# Age


@pytest.mark.parametrize("act", ["open", "seal"])
def test_use_does_not_extend_the_life_of_a_key(kms: Kms, sealed: str, act: str) -> None:
    process = envelope(kms, max_age_seconds=300)
    use: Callable[[], object] = (lambda: process.open(sealed)) if act == "open" else process.seal
    use()
    for _ in range(299):
        process.clock.advance(1)
        use()
    assert len(kms.requests) == 1
    process.clock.advance(0.999)
    use()
    assert len(kms.requests) == 1
    process.clock.advance(0.001)
    use()
    assert len(kms.requests) == 2


def test_age_counts_from_before_kms_is_asked(kms: Kms, sealed: str) -> None:
    process = envelope(kms, max_age_seconds=300, deadline_seconds=60)
    kms.faults.delay(1)
    with ThreadPoolExecutor(1) as thread:
        opened = thread.submit(process.open, sealed)
        eventually(lambda: kms.requests != [])
        process.clock.advance(299)  # before KMS answers
        kms.faults.clear()
        assert opened.result() == TOKEN
    assert process.strategy.open(sealed, HERE, wait=False) == TOKEN
    process.clock.advance(1)
    with pytest.raises(KeyNotCached):
        process.strategy.open(sealed, HERE, wait=False)


def test_a_key_that_expires_before_it_arrives_is_used_once(kms: Kms, sealed: str) -> None:
    process = envelope(kms, max_age_seconds=300, deadline_seconds=60)
    kms.faults.delay(1)
    with ThreadPoolExecutor(1) as thread:
        opened = thread.submit(process.open, sealed)
        eventually(lambda: kms.requests != [])
        process.clock.advance(300)
        kms.faults.clear()
        assert opened.result() == TOKEN
    assert len(process.data_keys) == 0


def test_an_expired_key_is_not_cached(kms: Kms, sealed: str) -> None:
    process = envelope(kms, max_age_seconds=300)
    process.open(sealed)
    process.seal()
    process.clock.advance(300)
    with pytest.raises(KeyNotCached):
        process.strategy.open(sealed, HERE, wait=False)
    with pytest.raises(KeyNotCached):
        process.strategy.seal(TOKEN, HERE, wait=False)


def test_an_idle_cache_is_emptied(kms: Kms, sealed: str) -> None:
    process = envelope(kms, max_age_seconds=300)
    process.open(sealed)
    process.clock.advance(100)
    process.seal()
    assert len(process.data_keys) == 3, "one to open with, one to seal with, and the latter's other half"
    process.data_keys.drop_expired()
    assert len(process.data_keys) == 3
    process.clock.advance(200)
    process.data_keys.drop_expired()
    assert len(process.data_keys) == 2
    process.clock.advance(100)
    process.data_keys.drop_expired()
    assert len(process.data_keys) == 0


# Messages


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_a_key_encrypts_no_more_than_its_messages(kms: Kms, limit: int) -> None:
    process = envelope(kms, max_messages=limit)
    wrapped = [members_of(process.seal())["dk"] for _ in range(3 * limit)]
    assert [wrapped.count(one) for one in dict.fromkeys(wrapped)] == [limit] * 3
    assert kms.operations() == [GENERATE] * 3


def test_a_key_whose_messages_are_used_up_still_decrypts(kms: Kms) -> None:
    process = envelope(kms, max_messages=1)
    ciphertexts = [process.seal() for _ in range(5)]
    kms.forget_requests()
    assert [process.open(one) for one in ciphertexts] == [TOKEN] * 5
    assert kms.requests == []


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_concurrent_callers_keep_to_the_limit_of_messages(kms: Kms, limit: int) -> None:
    process = envelope(kms, max_messages=limit)
    with ThreadPoolExecutor(20) as threads:
        ciphertexts = list(threads.map(lambda _: process.seal(), range(size(60, 200))))
    wrapped = [members_of(one)["dk"] for one in ciphertexts]
    assert max(wrapped.count(one) for one in wrapped) <= limit
    assert all(process.open(one) == TOKEN for one in ciphertexts)


# Size


def test_the_least_recently_used_is_dropped_first(kms: Kms) -> None:
    contexts = [TokenContext(f"user-{number}", "canvas") for number in range(4)]
    ciphertexts = [envelope(kms).seal(context) for context in contexts]
    process = envelope(kms, size=3)
    for number in (0, 1, 2, 0, 3):  # which drops 1
        process.open(ciphertexts[number], contexts[number])
    kms.forget_requests()
    for number in (0, 2, 3):
        process.open(ciphertexts[number], contexts[number])
    assert kms.requests == []
    process.open(ciphertexts[1], contexts[1])
    assert kms.operations() == [DECRYPT]


def test_each_half_of_the_cache_is_bounded(kms: Kms) -> None:
    process = envelope(kms, size=5)
    for number in range(20):
        context = TokenContext(f"user-{number}", "canvas")
        assert process.open(process.seal(context), context) == TOKEN
    assert len(process.data_keys) == 10


def test_a_cache_of_one_key_serves_concurrent_users(kms: Kms) -> None:
    process = envelope(kms, size=1, max_messages=1)

    def work(number: int) -> bool:
        context = TokenContext(f"user-{number % 7}", "canvas")
        return process.open(process.seal(context), context) == TOKEN

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(size(40, 100))))


# What may enter


def test_a_key_that_has_authenticated_nothing_does_not_enter(kms: Kms, sealed: str) -> None:
    process = envelope(kms)
    for broken in (flipped(sealed), changed(sealed, kid="arn"), changed(sealed, cm=encode(bytes(32)))):
        for _ in range(2):
            with pytest.raises(IntegrityError):
                process.open(broken)
            assert len(process.data_keys) == 0
    assert kms.operations() == [DECRYPT] * 6


def test_a_broken_package_does_not_affect_a_cached_key(kms: Kms, sealed: str) -> None:
    process = envelope(kms)
    process.open(sealed)
    with pytest.raises(IntegrityError):
        process.open(flipped(sealed))
    process.clock.advance(299)
    assert process.open(sealed) == TOKEN
    assert kms.operations() == [DECRYPT]
    process.clock.advance(1)
    process.open(sealed)
    assert kms.operations() == [DECRYPT] * 2, "nor does it make it younger"


def test_a_hit_cannot_skip_the_context() -> None:
    wrapped = b"wrapped"
    names = [
        fingerprint(wrapped, TokenContext(USER)),
        fingerprint(wrapped + b"2", TokenContext(USER)),
        fingerprint(wrapped, TokenContext(OTHER_USER)),
        fingerprint(wrapped, TokenContext("")),
        fingerprint(b"", TokenContext(USER)),
        fingerprint(TokenContext(USER).encryption_context_bytes(), TokenContext("")),
    ]
    assert len(set(names)) == len(names)
    assert fingerprint(wrapped, TokenContext(USER, "canvas", "default")) == names[0], "these are not KMS's to check"


def test_the_context_in_a_fingerprint_is_the_one_that_kms_gets() -> None:
    context = TokenContext(USER)
    pairs = [part.encode() for pair in sorted(context.encryption_context().items()) for part in pair]
    assert context.encryption_context_bytes() == length_prefixed(*pairs)


def test_keys_show_in_no_repr(kms: Kms) -> None:
    process = envelope(kms)
    wrapped = members_of(process.seal())["dk"]
    key = process.data_keys.for_sealing((USER, "canvas"))
    assert key is not None
    assert wrapped in key.head
    assert wrapped not in repr(key)
    assert repr(key.aead) not in repr(key)


# A crowd


def crowd(number_of_calls: int, call: Callable[[int], Any]) -> list[Any]:
    """Make concurrent calls and return their results or errors."""
    together = threading.Barrier(number_of_calls)
    results: list[Any] = [None] * number_of_calls

    def one(number: int) -> None:
        together.wait()
        try:
            results[number] = call(number)
        except Exception as error:  # noqa: BLE001  it is handed back
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(number_of_calls)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), "a call hangs"
    return results


@pytest.mark.parametrize("delay", [0, 0.3])
def test_concurrent_reads_of_one_user_are_one_request(kms: Kms, sealed: str, delay: float) -> None:
    process = envelope(kms)
    if delay:
        kms.faults.delay(delay)
    assert crowd(CROWD, lambda _: process.open(sealed)) == [TOKEN] * CROWD
    assert kms.operations() == [DECRYPT]


@pytest.mark.parametrize("delay", [0, 0.3])
def test_concurrent_writes_for_one_user_and_provider_are_one_request(kms: Kms, delay: float) -> None:
    process = envelope(kms, max_messages=CROWD)
    if delay:
        kms.faults.delay(delay)
    ciphertexts = crowd(CROWD, lambda _: process.seal())
    assert kms.operations() == [GENERATE]
    assert len({members_of(one)["n"] for one in ciphertexts}) == CROWD
    assert all(process.open(one) == TOKEN for one in ciphertexts)
    assert kms.operations() == [GENERATE]


def test_different_users_do_not_wait_for_each_other(kms: Kms) -> None:
    process = envelope(kms)
    kms.faults.delay(0.2)
    contexts = [TokenContext(f"user-{number}", "canvas") for number in range(20)]
    ciphertexts = crowd(20, lambda number: process.seal(contexts[number]))
    assert kms.operations() == [GENERATE] * 20
    assert [process.open(*pair) for pair in zip(ciphertexts, contexts, strict=True)] == [TOKEN] * 20


@pytest.mark.parametrize("act", ["open", "seal"])
def test_an_error_is_shared_by_concurrent_callers_and_not_kept(kms: Kms, sealed: str, act: str) -> None:
    process = envelope(kms)
    use: Callable[[], object] = (lambda: process.open(sealed)) if act == "open" else process.seal
    kms.faults.inject(KmsFault(delay_seconds=0.6, reply=Reply.of_error("ThrottlingException")))
    errors = crowd(100, lambda _: use())
    assert len(kms.requests) == 2, "one call of two attempts"
    assert {type(error) for error in errors} == {KeyUnavailable}
    assert len({id(error) for error in errors}) == 100, "each raises its own"
    assert max(len(traceback.extract_tb(error.__traceback__)) for error in errors) < 20
    kms.faults.clear()
    kms.forget_requests()
    use()
    assert len(kms.requests) == 1


def test_a_broken_package_that_comes_first_delays_no_intact_one(kms: Kms, sealed: str) -> None:
    process = envelope(kms)
    kms.faults.delay(1)
    with ThreadPoolExecutor(1) as threads:
        broken = threads.submit(process.open, flipped(sealed))
        eventually(lambda: kms.requests != [])
        assert crowd(20, lambda _: process.open(sealed)) == [TOKEN] * 20
        assert type(broken.exception()) is IntegrityError
    assert kms.operations() == [DECRYPT]
    assert process.strategy.open(sealed, HERE, wait=False) == TOKEN


@dataclass(slots=True)
class Pausing(InMemoryCounters):
    """Counters that stop the first thread with a miss until `go_on`."""

    missed: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def data_key_lookup(self, purpose: str, *, hit: bool) -> None:
        InMemoryCounters.data_key_lookup(self, purpose, hit=hit)
        if not hit and not self.missed.is_set():
            self.missed.set()
            assert self.go_on.wait(60)


@pytest.mark.parametrize("act", ["open", "seal"])
def test_a_miss_just_before_the_key_arrives_is_no_second_request(kms: Kms, sealed: str, act: str) -> None:
    counters = Pausing()
    process = envelope(kms, counters=counters)
    use: Callable[[], object] = (lambda: process.open(sealed)) if act == "open" else process.seal
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(use)
        assert counters.missed.wait(60)
        use()
        counters.go_on.set()
        late.result()
    assert len(kms.requests) == 1


async def test_a_lookup_without_waiting_and_another_are_one_miss(kms: Kms) -> None:
    """`TokenCipher` looks up a key on the event loop first, and again in a thread if it has to be fetched."""
    process = envelope(kms)
    cipher = TokenCipher(encryption=process.service)
    token_id = TokenId(USER, "canvas")
    sealed = await cipher.seal(Binding(token_id, None), SecretStr(TOKEN), None)
    assert process.counters.counts["data_key_lookups.seal.miss"] == 1
    assert process.counters.counts["data_key_lookups.seal.hit"] == 0
    process.clock.advance(300)
    context = TokenContext(USER, "canvas", token_id.service_type, SecretField.ACCESS_TOKEN)
    with pytest.raises(KeyNotCached):
        process.service.open(sealed.access.ciphertext, context, wait=False)
    process.service.open(sealed.access.ciphertext, context)
    process.service.open(sealed.access.ciphertext, context, wait=False)
    assert process.counters.counts["data_key_lookups.open.miss"] == 1
    assert process.counters.counts["data_key_lookups.open.hit"] == 1


# Expiring LRU


def test_dropped_names_leave_nothing_behind() -> None:
    kept: ExpiringLru[int, object] = ExpiringLru(size=10)
    value = object()
    tracemalloc.start()
    try:
        for number in range(20_000):
            kept.put(number, value, expires_at=1e9, now=0.0)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == 10
    assert grown < 100_000, "bytes, for twenty thousand names"


def test_a_value_that_is_put_again_has_the_new_expiry() -> None:
    kept: ExpiringLru[str, int] = ExpiringLru(size=10)
    kept.put("a", 1, expires_at=10, now=0)
    kept.put("b", 2, expires_at=12, now=2)
    kept.put("a", 3, expires_at=15, now=5)
    kept.drop_expired(now=11)
    assert (kept.get("a", now=11), kept.get("b", now=11)) == (3, 2)
    kept.drop_expired(now=12)
    assert len(kept) == 1
    assert kept.get("a", now=14.9) == 3
    assert kept.get("a", now=15) is None
    assert len(kept) == 0


def test_an_expired_value_replaces_the_old_one_and_is_not_kept() -> None:
    kept: ExpiringLru[str, int] = ExpiringLru(size=10)
    kept.put("a", 1, expires_at=10, now=0)
    kept.put("a", 2, expires_at=5, now=5)
    assert (len(kept), kept.get("a", now=5)) == (0, None)


# Against a model


class CacheMachine(RuleBasedStateMachine):
    """`DataKeyCache` beside a model that keeps everything in lists and looks everything up by hand."""

    AGE, MESSAGES, SIZE = 10, 2, 2
    names = st.sampled_from([b"a", b"b", b"c"])
    owners = st.sampled_from([("u", "p"), ("u", "q"), ("v", "p")])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = DataKeyCache(
            max_age_seconds=self.AGE,
            max_messages=self.MESSAGES,
            size=self.SIZE,
            counters=InMemoryCounters(),
            monotonic=self.clock,
        )
        # least recently used first: name, key, when it came (and how often it has sealed)
        self.opening: list[tuple[bytes, CommittingAead, float]] = []
        self.sealing: list[tuple[tuple[str, str], DataKey, float, int]] = []
        self.made = 0

    def aead(self) -> CommittingAead:
        self.made += 1
        return CommittingAead(bytes(32), info=str(self.made).encode())

    def alive(self, came: float) -> bool:
        return self.clock.now - came < self.AGE

    @rule(seconds=st.sampled_from([1, 5, 10]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(name=names)
    def keep_for_opening(self, name: bytes) -> None:
        aead = self.aead()
        self.cache.keep_for_opening(name, aead, expires_at=self.cache.expiry_of_new_key())
        known = [kept for kept in self.opening if kept[0] == name]
        self.opening = [kept for kept in self.opening if kept[0] != name]
        if known and self.alive(known[0][2]):
            self.opening.append(known[0])
        else:  # what is new comes in the place of what has expired
            self.opening = [kept for kept in self.opening if self.alive(kept[2])]
            self.opening.append((name, aead, self.clock.now))
        self.opening = self.opening[-self.SIZE :]

    @rule(name=names)
    def look_for_opening(self, name: bytes) -> None:
        expected = None
        for kept in list(self.opening):
            if kept[0] == name:
                self.opening.remove(kept)
                if self.alive(kept[2]):
                    self.opening.append(kept)
                    expected = kept[1]
        assert self.cache.for_opening(name) is expected

    @rule(owner=owners)
    def keep_for_sealing(self, owner: tuple[str, str]) -> None:
        key = DataKey(owner, self.aead(), "head", "arn", "id")
        self.cache.keep_for_sealing(key, expires_at=self.cache.expiry_of_new_key())
        self.sealing = [kept for kept in self.sealing if kept[0] != owner and self.alive(kept[2])]
        self.sealing.append((owner, key, self.clock.now, 0))
        self.sealing = self.sealing[-self.SIZE :]

    @rule(owner=owners)
    def look_for_sealing(self, owner: tuple[str, str]) -> None:
        expected = None
        for kept in list(self.sealing):
            if kept[0] == owner:
                self.sealing.remove(kept)
                if self.alive(kept[2]) and kept[3] < self.MESSAGES:
                    self.sealing.append((*kept[:3], kept[3] + 1))
                    expected = kept[1]
        assert self.cache.for_sealing(owner) is expected

    @rule()
    def drop_expired(self) -> None:
        self.cache.drop_expired()
        self.opening = [kept for kept in self.opening if self.alive(kept[2])]
        self.sealing = [kept for kept in self.sealing if self.alive(kept[2])]

    @invariant()
    def both_keep_as_many(self) -> None:
        assert len(self.cache) == len(self.opening) + len(self.sealing)


TestCacheAgainstItsModel = CacheMachine.TestCase
TestCacheAgainstItsModel.settings = settings(deadline=None, max_examples=size(60, 300), stateful_step_count=30)
