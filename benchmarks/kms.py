"""KMS: a data key at hand beside AWS's encryption SDK and beside asking each time, and how often KMS is asked."""

from __future__ import annotations

import itertools
import os
import random
import warnings
from typing import TYPE_CHECKING, Any

from app.observability.counters import InMemoryCounters
from app.security.aead import CommittingAead
from app.security.breaker import CircuitBreaker
from app.security.context import SecretField, TokenContext
from app.security.data_keys import DataKeyCache
from app.security.kms import KmsEnvelopeStrategy
from app.security.kms_client import KmsClient
from benchmarks.encryption import seconds
from benchmarks.requests import ACCESS_TOKEN, new_user_ids
from benchmarks.rounds import median_rate, median_ratio, take_turns
from benchmarks.table import Line, Target
from tests.stack.kms import REGION, Kms

if TYPE_CHECKING:
    from benchmarks.bench import Bench

CONTEXT = TokenContext("cd613e30-d8f1-4adf-91b7-584a2265b1f5", "canvas", "default", SecretField.ACCESS_TOKEN)
USERS = 10_000
TOKENS = 500


def measure(bench: Bench) -> list[Line]:
    kms = Kms()
    with kms.running():
        return [*_per_token(bench, kms), *_requests_of_a_day(bench), *_over_http(bench, kms)]


def _per_token(bench: Bench, kms: Kms) -> list[Line]:
    ours, each_time = _strategy(kms), _strategy(kms, max_messages=1)
    sdk_seal, sdk_open = _encryption_sdk(kms)
    sealed, theirs = ours.seal(ACCESS_TOKEN, CONTEXT).ciphertext, sdk_seal()
    few, many = (10, 50) if bench.quick else (50, 200)
    seal, open_, their_seal, their_open = seconds(
        many,
        lambda: ours.seal(ACCESS_TOKEN, CONTEXT),
        lambda: ours.open(sealed, CONTEXT),
        sdk_seal,
        lambda: sdk_open(theirs),
        in_a_row=20,
    )
    [asking] = seconds(few, lambda: each_time.seal(ACCESS_TOKEN, CONTEXT))
    tenfold = Target(at_least=10, of_ratio=True)
    return [
        Line("seal under KMS, data key at hand", seal * 1e6, "us"),
        Line("open under KMS, data key at hand", open_ * 1e6, "us"),
        Line("seal, aws-encryption-sdk with its cache", their_seal * 1e6, "us", their_seal / seal, "ours", tenfold),
        Line("open, aws-encryption-sdk with its cache", their_open * 1e6, "us", their_open / open_, "ours", tenfold),
        Line("seal with a request each time, on loopback", asking * 1e6, "us", asking / seal, "ours"),
    ]


def _strategy(kms: Kms, *, max_messages: int = 1_000_000) -> KmsEnvelopeStrategy:
    counters = InMemoryCounters()
    client = KmsClient(
        client=kms.client(), key_id=kms.key_arn, breaker=CircuitBreaker(counters=counters), counters=counters
    )
    data_keys = DataKeyCache(max_age_seconds=300, max_messages=max_messages, size=10_000, counters=counters)
    return KmsEnvelopeStrategy(kms=client, data_keys=data_keys)


def _encryption_sdk(kms: Kms) -> tuple[Any, Any]:
    """Return the SDK's encrypt and decrypt: its caching manager, its committing suite without signatures."""
    warnings.simplefilter("ignore")  # it announces the end of this interface, which is the one that caches
    import aws_encryption_sdk as sdk  # noqa: PLC0415  it takes a while to import
    import botocore.session  # noqa: PLC0415
    from aws_encryption_sdk.identifiers import Algorithm  # noqa: PLC0415

    os.environ |= {
        "AWS_ENDPOINT_URL_KMS": kms.url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "benchmarks",
        "AWS_SECRET_ACCESS_KEY": "none",
    }
    provider = sdk.StrictAwsKmsMasterKeyProvider(key_ids=[kms.key_arn], botocore_session=botocore.session.Session())
    manager = sdk.CachingCryptoMaterialsManager(
        master_key_provider=provider,
        cache=sdk.LocalCryptoMaterialsCache(10_000),
        max_age=300.0,
        max_messages_encrypted=1_000_000,
    )
    client = sdk.EncryptionSDKClient(commitment_policy=sdk.CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
    suite = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY

    def seal() -> bytes:
        ciphertext, _ = client.encrypt(
            source=ACCESS_TOKEN.encode(),
            materials_manager=manager,
            encryption_context=CONTEXT.encryption_context(),
            algorithm=suite,
        )
        return bytes(ciphertext)

    def open_(ciphertext: bytes) -> bytes:
        plaintext, _ = client.decrypt(source=ciphertext, materials_manager=manager)
        return bytes(plaintext)

    return seal, open_


def _requests_of_a_day(bench: Bench) -> list[Line]:
    """Simulate one replica: reads of 10 000 users, Zipf with exponent 1, against the real cache and a made-up clock.

    A day repeats the same window over and over, so one window after a first one stands for it. How often KMS is asked
    follows from how many reads fall on one user within the cache's age, so both the rate and the age are given.
    """
    lines = []
    cases = [(2_000, 300)] if bench.quick else [(200, 300), *itertools.product((2_000, 5_000), (60, 300, 900))]
    for rate, age in cases:
        per_thousand = _misses_per_thousand(rate, age)
        lines.append(
            Line(
                f"KMS requests per 1 000 reads, {rate}/s, age {age} s",
                per_thousand,
                "",
                1_000 / per_thousand,
                "fewer than one each",
                Target(at_least=100, of_ratio=True),
            )
        )
    return lines


def _misses_per_thousand(rate: int, age: int) -> float:
    now = 0.0
    cache = DataKeyCache(
        max_age_seconds=age, max_messages=1_000, size=10_000, counters=InMemoryCounters(), monotonic=lambda: now
    )
    aead = CommittingAead(bytes(32), info=b"benchmark")
    names = [number.to_bytes(4, "big") for number in range(USERS)]
    cumulative = list(itertools.accumulate(1 / (rank + 1) for rank in range(USERS)))
    chance = random.Random(7)  # noqa: S311  the same day each time
    asked = reads = 0
    for second in range(2 * age):
        now = float(second)
        for name in chance.choices(names, cum_weights=cumulative, k=rate):
            missed = cache.for_opening(name) is None
            if missed:
                cache.keep_for_opening(name, aead)
            if second >= age:
                reads += 1
                asked += missed
    return 1_000 * asked / reads


def _over_http(bench: Bench, kms: Kms) -> list[Line]:
    user_ids = new_user_ids(TOKENS)
    requests = tuple(bench.requests.reveal(user_id) for user_id in user_ids)
    with (
        bench.servers.vault("kms", kms.environment()) as sealed_by_kms,
        bench.servers.vault("local") as sealed_locally,
    ):
        bench.stored(sealed_by_kms, user_ids)
        bench.stored(sealed_locally, user_ids)
        with_kms, locally = take_turns(
            [bench.over_and_over(sealed_by_kms, requests), bench.over_and_over(sealed_locally, requests)],
            rounds=bench.rounds,
        )
    target = Target(at_least=0.9, of_ratio=True)
    ratio = median_ratio(with_kms, locally)
    return [Line("reveal under KMS, data keys at hand", median_rate(with_kms), "requests/s", ratio, "local", target)]
