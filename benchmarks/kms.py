"""KMS: a data key cached beside AWS's encryption SDK and beside asking each time, and how often KMS is asked."""

from __future__ import annotations

import itertools
import math
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

from app.observability.in_memory_counters import InMemoryCounters
from app.security.aead import CommittingAead
from app.security.context import SecretField, TokenContext
from app.security.kms.circuit_breaker import CircuitBreaker, DenialBreaker
from app.security.kms.client import KmsClient
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.strategy import KmsEnvelopeStrategy
from benchmarks.bench import Bench
from benchmarks.encryption import seconds
from benchmarks.requests import ACCESS_TOKEN, new_user_ids
from benchmarks.rounds import median_rate, median_ratio, run_rounds
from benchmarks.table import Line, Target
from tests.support.stack.kms import REGION, Kms

CONTEXT = TokenContext("cd613e30-d8f1-4adf-91b7-584a2265b1f5", "canvas", "default", SecretField.ACCESS_TOKEN)
KEY_ARN = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
USERS = 10_000
ALL_RANKS = sum(1 / rank for rank in range(1, USERS + 1))
SHARES = [1 / rank / ALL_RANKS for rank in range(1, USERS + 1)]
MEAN_READS = 3_500  # a second: 300 million a day, the thousands a second that the vault is made for
TOKENS = 500


def measure(bench: Bench) -> list[Line]:
    kms = Kms()
    with kms.running():
        return [*_per_token(bench, kms), *_requests_of_a_day(bench), *_over_http(bench, kms)]


def _per_token(bench: Bench, kms: Kms) -> list[Line]:
    ours, each_time = _strategy(kms), _strategy(kms, max_messages=1)
    sdk_seal, sdk_open = _encryption_sdk(kms)
    sealed, theirs = ours.seal(ACCESS_TOKEN, CONTEXT).ciphertext, sdk_seal()
    crowd = _crowd(1_000 if bench.quick else USERS)
    few, many = (10, 50) if bench.quick else (50, 200)
    seal, open_, open_any, their_seal, their_open = seconds(
        many,
        lambda: ours.seal(ACCESS_TOKEN, CONTEXT),
        lambda: ours.open(sealed, CONTEXT),
        lambda: next(crowd),
        sdk_seal,
        lambda: sdk_open(theirs),
        in_a_row=20,
    )
    asking, asking_open = seconds(
        few,
        lambda: each_time.seal(ACCESS_TOKEN, CONTEXT),
        lambda: _strategy(kms).open(sealed, CONTEXT),
    )
    tenfold = Target(at_least=10, of_ratio=True)
    return [
        Line("seal under KMS, data key cached", seal * 1e6, "us"),
        Line("open under KMS, data key cached", open_ * 1e6, "us"),
        Line(f"open under KMS, {1_000 if bench.quick else USERS:,} users in turn", open_any * 1e6, "us"),
        Line("seal, aws-encryption-sdk with its cache", their_seal * 1e6, "us", their_seal / seal, "ours", tenfold),
        Line("open, aws-encryption-sdk with its cache", their_open * 1e6, "us", their_open / open_, "ours", tenfold),
        Line("seal with a request each time, on loopback", asking * 1e6, "us", asking / seal, "ours"),
        Line("open with a request each time, on loopback", asking_open * 1e6, "us", asking_open / open_, "ours"),
    ]


def _strategy(kms: Kms, *, max_messages: int = 1_000_000) -> KmsEnvelopeStrategy:
    return _strategy_over(kms.client(), kms.key_arn, max_messages=max_messages)


def _strategy_over(client: object, key_id: str, *, max_messages: int = 1_000_000) -> KmsEnvelopeStrategy:
    counters = InMemoryCounters()
    kms = KmsClient(
        client=client,
        key_id=key_id,
        breaker=CircuitBreaker(counters=counters),
        denials=DenialBreaker(),
        counters=counters,
    )
    data_keys = DataKeyCache(max_age_seconds=300, max_messages=max_messages, size=10_000, counters=counters)
    return KmsEnvelopeStrategy(key_service=kms, data_keys=data_keys)


def _encryption_sdk(kms: Kms) -> tuple[Any, Any]:
    """Return encrypt and decrypt of the SDK, with its cache and its committing suite without signatures."""
    warnings.simplefilter("ignore")  # it announces the end of this interface, which is the one that caches
    import aws_encryption_sdk as sdk  # noqa: PLC0415  it takes a while to import
    import botocore.session  # noqa: PLC0415  as above
    from aws_encryption_sdk.identifiers import Algorithm  # noqa: PLC0415  as above

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


class _NearKms:
    """boto3's KMS client without HTTP, for ten thousand data keys."""

    def __init__(self) -> None:
        self._keys: dict[bytes, bytes] = {}

    def generate_data_key(self, **_: object) -> dict[str, object]:
        wrapped = os.urandom(184)
        self._keys[wrapped] = os.urandom(32)
        return {"KeyId": KEY_ARN, "Plaintext": self._keys[wrapped], "CiphertextBlob": wrapped}

    def decrypt(self, *, CiphertextBlob: bytes, **_: object) -> dict[str, object]:  # noqa: N803  KMS's name
        return {"KeyId": KEY_ARN, "Plaintext": self._keys[CiphertextBlob]}


def _crowd(users: int) -> Iterator[object]:
    """Decrypt one token of each user in turn, over and over, with every data key cached."""
    strategy = _strategy_over(_NearKms(), KEY_ARN)
    rows = []
    for user_id in new_user_ids(users):
        context = TokenContext(user_id, "canvas", "default", SecretField.ACCESS_TOKEN)
        rows.append((strategy.seal(ACCESS_TOKEN, context).ciphertext, context))
    for ciphertext, context in itertools.cycle(rows):
        yield strategy.open(ciphertext, context)


def _requests_of_a_day(bench: Bench) -> list[Line]:
    """Compute the requests of one replica on a day of 10 000 users whose reads follow Zipf's law (exponent 1).

    Reads are random, most in the afternoon and a tenth of that at night; each user's token is rotated every hour. A key
    is requested once per `age` plus the wait for the next read, so a user with `r` reads a second costs
    `r / (1 + r * age)` requests a second. A simulation of the cache over two ages has to agree. Each line names its
    number of reads, which decides the figure.
    """
    lines = [
        Line(
            f"KMS requests per 1 000 operations, {mean * 86_400 / 1e6:,.0f} M reads a day, age {age} s",
            per_thousand,
            "",
            1_000 / per_thousand,
            "fewer than one each",
            Target(at_least=100, of_ratio=True) if mean == MEAN_READS else None,
        )
        for mean, age in [(MEAN_READS, 60), (MEAN_READS, 300), (MEAN_READS, 900), (MEAN_READS // 10, 300)]
        for per_thousand in [_requests_per_thousand(mean, age)]
    ]
    rate, age = (200, 60) if bench.quick else (MEAN_READS, 300)
    reckoned = 1_000 * sum(_asked_a_second(rate * share, age) for share in SHARES) / rate
    simulated = _misses_per_thousand(rate, age)
    return [
        *lines,
        Line(f"the same, simulated at {rate:,}/s, age {age} s", simulated, "", simulated / reckoned, "formula"),
    ]


def _requests_per_thousand(mean: float, age: int) -> float:
    asked = reads = 0.0
    for hour in range(24):
        rate = mean * (1 - 0.8 * math.cos(2 * math.pi * (hour - 3) / 24))
        reads += 3_600 * rate
        asked += 3_600 * sum(_asked_a_second(rate * share, age) for share in SHARES)
    rotations = 24 * USERS  # each an hour apart, so each takes a new data key
    return 1_000 * (asked + rotations) / (reads + rotations)


def _asked_a_second(reads_a_second: float, age: int) -> float:
    return reads_a_second / (1 + reads_a_second * age)


def _misses_per_thousand(rate: int, age: int) -> float:
    now = 0.0
    cache = DataKeyCache(
        max_age_seconds=age, max_messages=1_000, size=10_000, counters=InMemoryCounters(), monotonic=lambda: now
    )
    aead = CommittingAead(bytes(32), info=b"benchmark")
    names = [number.to_bytes(4, "big") for number in range(USERS)]
    cumulative = list(itertools.accumulate(SHARES))
    chance = random.Random(7)  # noqa: S311  the same day each time
    asked = reads = 0
    for second in range(2 * age):
        now = float(second)
        for name in chance.choices(names, cum_weights=cumulative, k=rate):
            missed = cache.for_opening(name) is None
            if missed:
                cache.keep_for_opening(name, aead, expires_at=now + age)
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
        with_kms, locally = run_rounds(
            [bench.over_and_over(sealed_by_kms, requests), bench.over_and_over(sealed_locally, requests)],
            turns=bench.turns,
        )
    target = Target(at_least=0.9, of_ratio=True)
    ratio = median_ratio(with_kms, locally)
    return [Line("reveal under KMS, data keys cached", median_rate(with_kms), "requests/s", ratio, "local", target)]
