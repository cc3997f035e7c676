"""Verification of users' JWTs (RFC 7519): the proof that a service acts for this user."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import jwt

from app.callers.user_jwt_refusals import VERIFIED, JwtRefusal, UserJwtCounters, refusal
from app.errors import InvalidRequest, UserJwtRefused
from app.tokens.models import parse_user_id

MAXIMUM_CHARACTERS: Final = 8_192
LEEWAY_SECONDS: Final = 10
CACHE_SIZE: Final = 10_000
HS256: Final = "HS256"
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
# PyJWT raises its own errors for what it foresees; the rest are those of JSON and numbers of any size
_INVALID: Final = (jwt.PyJWTError, InvalidRequest, ValueError, TypeError, KeyError, OverflowError, RecursionError)


class VerificationKeys(Protocol):
    """Keys of the issuer. `algorithms` are the only ones that a JWT may name."""

    @property
    def algorithms(self) -> frozenset[str]: ...

    def generation(self) -> int | None:
        """Return a number that changes with the keys; `None` while there are none."""
        ...

    async def find(self, algorithm: str, key_id: str | None) -> jwt.PyJWK | bytes:
        """Return the key, or raise `UserJwtRefused` if there is no such key, `KeyUnavailable` if that is unknown."""
        ...


class SharedSecret:
    """The secret of an issuer that signs with HS256 (RFC 7518, section 3.2), such as Supabase's legacy JWT secret."""

    algorithms = frozenset({HS256})

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def generation(self) -> int:
        return 0

    async def find(self, algorithm: str, key_id: str | None) -> bytes:  # noqa: ARG002  there is one key
        return self._secret


@dataclass(frozen=True, slots=True)
class _Verified:
    """The user and the expiry, in seconds since 1970, of a JWT that was verified."""

    user_id: str
    expires_at: int


class UserJwtVerifier:
    """Verifies signature, issuer, audience and expiry of a user's JWT, and returns the user.

    The JWT's header only selects among the algorithms and keys of the issuer. A verified JWT is remembered by its
    SHA-256 until it expires or the issuer's keys change, because PyJWT takes as long to verify one as a reveal takes,
    whatever the algorithm. The JWT itself is kept nowhere.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        keys: VerificationKeys,
        counters: UserJwtCounters,
        cache_size: int = CACHE_SIZE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys = keys
        self._counters = counters
        self._cache_size = cache_size
        self._now = now
        self._verified: dict[bytes, _Verified] = {}
        self._verified_by: int | None = None

    async def user_of(self, token: str) -> str:
        """Return the user id of a valid JWT; raises `UserJwtRefused` or `KeyUnavailable`."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known(digest)
        if known is None:
            known = await self._verify(token)
            self._remember(digest, known)
        if self._now() >= known.expires_at + LEEWAY_SECONDS:
            raise refusal(JwtRefusal.EXPIRED)
        self._counters.user_jwt(VERIFIED)
        return known.user_id

    def refused(self, error: UserJwtRefused) -> None:
        """Count a refusal, wherever it was decided."""
        self._counters.user_jwt(error.reason)

    def _known(self, digest: bytes) -> _Verified | None:
        generation = self._keys.generation()
        if generation is None or generation != self._verified_by:
            self._verified.clear()
            self._verified_by = generation
            return None
        return self._verified.get(digest)

    def _remember(self, digest: bytes, verified: _Verified) -> None:
        generation = self._keys.generation()
        if generation != self._verified_by:  # verifying may have fetched the keys anew
            self._verified.clear()
            self._verified_by = generation
        while len(self._verified) >= self._cache_size:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = verified

    async def _verify(self, token: str) -> _Verified:
        algorithm, key_id = self._read_header(token)
        key = await self._keys.find(algorithm, key_id)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            return _Verified(parse_user_id(claims["sub"]), int(claims["exp"]))
        except jwt.ExpiredSignatureError:
            raise refusal(JwtRefusal.EXPIRED) from None
        except jwt.InvalidSignatureError:
            raise refusal(JwtRefusal.SIGNATURE) from None
        except (jwt.DecodeError, jwt.InvalidAlgorithmError):
            raise refusal(JwtRefusal.MALFORMED) from None
        except _INVALID:
            raise refusal(JwtRefusal.CLAIMS) from None

    def _read_header(self, token: str) -> tuple[str, str | None]:
        """Return algorithm and key id. Nothing is verified yet, so only accepted algorithms pass."""
        if len(token) > MAXIMUM_CHARACTERS or _COMPACT.fullmatch(token) is None:
            raise refusal(JwtRefusal.MALFORMED)
        try:
            # of the header alone: PyJWT would decode the rest too, which is most of its time
            header = jwt.get_unverified_header(f"{token.partition('.')[0]}..")
        except _INVALID:
            raise refusal(JwtRefusal.MALFORMED) from None
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._keys.algorithms:
            raise refusal(JwtRefusal.ALGORITHM)
        return algorithm, header.get("kid")
