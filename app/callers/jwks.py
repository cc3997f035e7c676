"""The issuer's public keys: a JSON Web Key Set (RFC 7517), parsed strictly and kept fresh in the background."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from app.callers.user_jwt_refusals import JwtRefusal, UserJwtCounters, refusal
from app.errors import KeyUnavailable
from app.single_flight import AsyncSingleFlight, SharedCall

MAXIMUM_BYTES: Final = 64 * 1024
MAXIMUM_KEYS: Final = 32
REFRESH_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 10.0  # also the shortest time between two downloads
MAXIMUM_AGE_SECONDS: Final = 3_600.0  # the lifetime of Supabase's JWTs: an outage of the issuer outlasts its last one
# by type and curve of the key (RFC 7518, RFC 8037); a key serves one algorithm, whatever the header of a JWT says
_ALGORITHMS: Final = {("EC", "P-256"): "ES256", ("RSA", None): "RS256", ("OKP", "Ed25519"): "EdDSA"}
_RSA_BITS: Final = range(2_048, 8_193)
_MAXIMUM_KEY_ID: Final = 256
_INVALID: Final = (
    jwt.PyJWTError,
    UnsupportedAlgorithm,  # OpenSSL in FIPS mode lacks some
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
)
_log = structlog.get_logger()

KeySet = dict[tuple[str, str], jwt.PyJWK]
"""Keys by algorithm and key id."""


class KeySetError(Exception):
    """The key set cannot be downloaded or used. The text quotes nothing of it."""


def parse_key_set(document: bytes) -> KeySet:
    """Return the usable keys, perhaps none, or raise `KeySetError`. Keys for another purpose are left out."""
    try:
        members = json.loads(document)
    except (ValueError, RecursionError):
        raise KeySetError("the key set is not JSON") from None
    keys = members.get("keys") if isinstance(members, dict) else None
    if not isinstance(keys, list):
        raise KeySetError("the key set has no list of keys")
    if len(keys) > MAXIMUM_KEYS:
        raise KeySetError(f"the key set has more than {MAXIMUM_KEYS} keys")
    found: KeySet = {}
    for member in keys:
        key = _public_key(member)
        if key is not None:
            found.setdefault((key.algorithm_name, str(key.key_id)), key)
    return found


def _public_key(member: object) -> jwt.PyJWK | None:
    """Return the key if it is a public one with an id that verifies signatures."""
    if not isinstance(member, dict) or not _is_for_verifying(member):
        return None
    try:
        algorithm = _ALGORITHMS[member["kty"], member.get("crv")]
        key = jwt.PyJWK(member, algorithm)
    except _INVALID:  # also for a type that is not listed
        return None
    if member.get("alg", algorithm) != algorithm:
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size not in _RSA_BITS:
        return None
    return key


def _is_for_verifying(member: dict[str, Any]) -> bool:
    key_id, operations = member.get("kid"), member.get("key_ops", ["verify"])
    return (
        isinstance(key_id, str)
        and 1 <= len(key_id) <= _MAXIMUM_KEY_ID
        and member.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and "d" not in member  # a private key
    )


class JwksKeys:
    """`VerificationKeys` from a key set that `download` returns.

    - `run` downloads it at the start and every five to six minutes, so no call waits for a refresh; after a failure,
      also of a download that a call started, it tries again every ten seconds.
    - A JWT with an unknown key id starts a download too, since the issuer may have a new key. All such calls share it,
      and there is at most one in ten seconds; until the next one such JWTs are `KeyUnavailable`.
    - After a failure the keys stay in use until they are an hour old. A key set without usable keys is no failure: the
      issuer has withdrawn them, and they end at once.
    """

    algorithms = frozenset(_ALGORITHMS.values())

    def __init__(
        self,
        *,
        download: Callable[[], Awaitable[bytes]],
        counters: UserJwtCounters,
        monotonic: Callable[[], float] = time.monotonic,
        look_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`look_seconds` is the time between two looks of `run` at what is due."""
        self._download = download
        self._counters = counters
        self._monotonic = monotonic
        self._look_seconds = look_seconds
        self._downloads: AsyncSingleFlight[None] = AsyncSingleFlight()
        self._keys: KeySet = {}
        self._document = b""
        self._generation = 0
        self._usable_until = float("-inf")
        self._next_download = float("-inf")
        self._stale_at = float("-inf")
        self._problem: str | None = "the key set has not been downloaded yet"

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        while True:
            if self._problem is not None or self._monotonic() >= self._stale_at:
                await self._refresh()
            await asyncio.sleep(self._look_seconds)

    async def download_now(self) -> list[str]:
        """Download the key set and return the algorithm of each key; raises `KeyUnavailable`."""
        await self._refresh()
        await self.check()
        return sorted(algorithm for algorithm, _ in self._keys)

    async def check(self) -> None:
        """Raise `KeyUnavailable` if the last download failed, even if the keys are still in use; for readiness."""
        if self._problem is not None:
            raise KeyUnavailable(f"users' JWTs: {self._problem}")

    def generation(self) -> int | None:
        return self._generation if self._keys and self._monotonic() < self._usable_until else None

    async def find(self, algorithm: str, key_id: str | None) -> jwt.PyJWK:
        if key_id is None:
            raise refusal(JwtRefusal.UNKNOWN_KEY)
        key, is_current = self._usable(algorithm, key_id), False
        if key is None:
            is_current = await self._refresh()
            key = self._usable(algorithm, key_id)
        if key is not None:
            return key
        if self._problem is not None:
            reason = "the keys that verify users' JWTs are not available"
        elif is_current:
            raise refusal(JwtRefusal.UNKNOWN_KEY)
        else:
            reason = "the user's JWT is signed with a key that the vault does not have: it looks for new keys soon"
        wait = max(1, math.ceil(self._next_download - self._monotonic()))
        raise KeyUnavailable(reason, retry_after_seconds=wait)

    def _usable(self, algorithm: str, key_id: str) -> jwt.PyJWK | None:
        return None if self.generation() is None else self._keys.get((algorithm, key_id))

    async def _refresh(self) -> bool:
        """Wait for the download in progress or for a new one; return false if the last one has just been."""
        if self._downloads.get("jwks") is None and self._monotonic() < self._next_download:
            return False
        await self._downloads.join("jwks", lambda: SharedCall(asyncio.ensure_future(self._download_keys()))).result()
        return True

    async def _download_keys(self) -> None:
        self._next_download = self._monotonic() + RETRY_SECONDS
        try:
            document = await self._download()
            keys = parse_key_set(document)
        except KeySetError as error:
            self._failed(str(error))
            return
        is_new = document != self._document
        if is_new:
            self._document, self._keys = document, keys
            self._generation += 1
        if not keys:
            self._failed(f"the key set has no public key for {', '.join(sorted(self.algorithms))}")
            return
        self._counters.key_set_download("success")
        self._usable_until = self._monotonic() + MAXIMUM_AGE_SECONDS
        self._stale_at = self._monotonic() + REFRESH_SECONDS * random.uniform(1.0, 1.2)  # noqa: S311  spreads replicas out
        if self._problem is not None or is_new:
            _log.info("user_jwt_keys_downloaded", keys=len(keys))
        self._problem = None

    def _failed(self, problem: str) -> None:
        self._counters.key_set_download("failure")
        if problem != self._problem:
            _log.warning("user_jwt_keys_failed", reason=problem)
        self._problem = problem
