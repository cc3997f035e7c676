"""Opening a legacy token, and sealing and opening the bound format, beside the bare primitive that each rests on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.observability.in_memory_counters import InMemoryCounters
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.security.keyring import Keyring, decode_key_text
from app.security.legacy_formats import PBKDF2_ITERATIONS, PulsePlanLocalReader
from app.security.local_strategy import LocalStrategy
from benchmarks.bench import Bench
from benchmarks.requests import ACCESS_TOKEN
from benchmarks.table import Line

_VECTORS = Path(__file__).parents[1] / "tests" / "vectors" / "pulseplan_local_tokens.json"


def measure(bench: Bench) -> list[Line]:
    keyring, legacy, context = _legacy_token()
    service = EncryptionService(
        primary=LocalStrategy(keyring=keyring),
        readers=[PulsePlanLocalReader(keyring=keyring)],
        counters=InMemoryCounters(),
    )
    sealed = service.seal(ACCESS_TOKEN, context).ciphertext
    aead, plaintext, aad = AESGCM(os.urandom(32)), ACCESS_TOKEN.encode(), os.urandom(100)
    nonce = os.urandom(12)
    bare = aead.encrypt(nonce, plaintext, aad)
    few, many = (5, 50) if bench.quick else (25, 200)

    cold, pbkdf2 = seconds(
        few, lambda: PulsePlanLocalReader(keyring=keyring).open(legacy, context), lambda: _derived(context.user_id)
    )
    warm, seal, open_, bare_seal, bare_open = seconds(
        many,
        lambda: service.open(legacy, context),
        lambda: service.seal(ACCESS_TOKEN, context),
        lambda: service.open(sealed, context),
        lambda: aead.encrypt(os.urandom(12), plaintext, aad),
        lambda: aead.decrypt(nonce, bare, aad),
        in_a_row=20,
    )
    return [
        Line("open a legacy token, cold", cold * 1e3, "ms", cold / pbkdf2, "bare PBKDF2, 100 000 rounds"),
        Line("open a legacy token, its key cached", warm * 1e6, "us", warm / bare_open, "bare AES-256-GCM"),
        Line("seal, bound format", seal * 1e6, "us", seal / bare_seal, "bare AES-256-GCM"),
        Line("open, bound format", open_ * 1e6, "us", open_ / bare_open, "bare AES-256-GCM"),
    ]


def _legacy_token() -> tuple[Keyring, str, TokenContext]:
    group = json.loads(_VECTORS.read_text())[0]
    vector = group["vectors"][0]
    keyring = Keyring(group["key_version"], {group["key_version"]: decode_key_text(group["master_key"])})
    context = TokenContext(vector["user_id"], "canvas", "default", SecretField.ACCESS_TOKEN)
    return keyring, vector["ciphertext"], context


def _derived(user_id: str) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", b"." * 32, user_id.encode(), PBKDF2_ITERATIONS)


def seconds(rounds: int, *calls: Callable[[], object], in_a_row: int = 1) -> list[float]:
    """Make each call `in_a_row` times in each round; return the median duration of one call of each."""
    durations: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, durations, strict=True):
            start = time.perf_counter()
            for _ in range(in_a_row):
                call()
            taken.append((time.perf_counter() - start) / in_a_row)
    return [median(taken) for taken in durations]
