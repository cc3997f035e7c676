"""The secrets of one run, each unlike any other text."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from app.errors import MalformedCiphertext
from app.security.kms.package_format import Package
from tests.support.canary.search import Secret
from tests.support.security.user_jwts import ISSUER, secret_jwt
from tests.support.stack.kms import Kms
from tests.support.stores.stores import Store


def marked(label: str) -> str:
    """Return a text whose encodings all differ, and that no field and no header accepts."""
    return f'{label}"~/%é\\ {secrets.token_hex(16)}'


def _key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class Marked:
    """Secrets that callers send, and secrets of the configuration."""

    access: str = field(default_factory=lambda: marked("access"))
    rotated: str = field(default_factory=lambda: marked("rotated"))
    refresh: str = field(default_factory=lambda: marked("refresh"))
    misplaced: str = field(default_factory=lambda: marked("misplaced"))
    metadata: str = field(default_factory=lambda: marked("metadata"))
    master_key: str = field(default_factory=_key)
    previous_key: str = field(default_factory=_key)
    audit_key: str = field(default_factory=_key)
    jwt_secret: str = field(default_factory=lambda: f"jwt/{secrets.token_hex(24)}+x")
    jwt_user: str = field(default_factory=lambda: str(uuid4()))
    client_secret: str = field(default_factory=lambda: f"client-{secrets.token_hex(16)}")
    wrong_client_secret: str = field(default_factory=lambda: f"wrong-{secrets.token_hex(16)}")
    issued_access: str = field(default_factory=lambda: f"issued-access-{secrets.token_hex(16)}")
    issued_refresh: str = field(default_factory=lambda: f"issued-refresh-{secrets.token_hex(16)}")
    code: str = field(default_factory=lambda: f"code-{secrets.token_hex(16)}")
    code_verifier: str = field(default_factory=lambda: f"verifier-{secrets.token_hex(32)}")
    collector_key: str = field(default_factory=lambda: f"collector-{secrets.token_hex(16)}")
    aws_access_key: str = field(default_factory=lambda: f"AKIA{secrets.token_hex(8).upper()}")
    aws_secret_key: str = field(default_factory=lambda: f"aws/{secrets.token_hex(16)}+x")

    @property
    def user_jwt(self) -> str:
        """A valid JWT of `jwt_user`, the same each time."""
        fixed = {"exp": 4_000_000_000, "iat": 1_700_000_000, "session_id": "one", "amr": None}
        return secret_jwt(self.jwt_user, self.jwt_secret, **fixed)

    def settings(self) -> dict[str, str]:
        return {
            "USER_JWT_ISSUER": ISSUER,
            "USER_JWT_SECRET": self.jwt_secret,
            "TOKEN_ENCRYPTION_KEY": self.master_key,
            "ENCRYPTION_KEY_VERSION": "2",
            "TOKEN_ENCRYPTION_PREVIOUS_KEYS": f'{{"1": "{self.previous_key}"}}',
            "AUDIT_KEY": self.audit_key,
            "AWS_ACCESS_KEY_ID": self.aws_access_key,
            "AWS_SECRET_ACCESS_KEY": self.aws_secret_key,
            "LOG_LEVEL": "DEBUG",
        }

    def tokens(self) -> list[Secret]:
        """Return the tokens, which a reveal may answer with."""
        named = {"access token": self.access, "rotated token": self.rotated, "refresh token": self.refresh}
        named["the provider's access token"] = self.issued_access
        return [Secret.of(label, text) for label, text in named.items()]

    def others(self, service_keys: Mapping[str, str], supabase_key: str | None) -> list[Secret]:
        """Return the secrets that no answer may hold."""
        found = [Secret.of("misplaced token", self.misplaced)]
        found += [Secret.of(f"service key {name}", key) for name, key in service_keys.items()]
        keys = {"master key": self.master_key, "previous master key": self.previous_key, "audit key": self.audit_key}
        for label, key in keys.items():
            found += [Secret.of(label, key), Secret(f"{label}, decoded", base64.b64decode(key))]
        # the id of the access key is no secret: each request to AWS carries it in the clear
        found.append(Secret.of("AWS secret access key", self.aws_secret_key))
        found.append(Secret.of("the collector's key", self.collector_key))
        found.append(Secret.of("the issuer's secret", self.jwt_secret))
        found.append(Secret.of("the client's secret", self.client_secret))
        found.append(Secret.of("the client's other secret", self.wrong_client_secret))
        found.append(Secret.of("the provider's refresh token", self.issued_refresh))
        found.append(Secret.of("the authorization code", self.code))
        found.append(Secret.of("the code verifier", self.code_verifier))
        head, claims, signature = self.user_jwt.split(".")
        parts = {"": self.user_jwt, ", signed part": f"{head}.{claims}", ", signature": signature}
        found += [Secret.of(f"the user's JWT{part}", text) for part, text in parts.items()]
        if supabase_key is not None:
            found.append(Secret.of("Supabase's key", supabase_key))
            found.append(Secret.of("the signature of Supabase's key", supabase_key.rpartition(".")[2]))
        return found


def data_keys(store: Store, kms: Kms) -> list[Secret]:
    """Unwrap the data key of each row."""
    wrapped = set()
    for row in store.rows():
        with suppress(MalformedCiphertext):  # another format
            wrapped.add((row["user_id"], Package.decode(row["access_token"]).wrapped))
    keys = {
        kms.client().decrypt(
            CiphertextBlob=blob,
            KeyId=kms.key_arn,
            EncryptionContext={"user_id": user_id, "service": "pulseplan", "data_type": "auth_token"},
        )["Plaintext"]
        for user_id, blob in wrapped
    }
    return [Secret(f"data key {number}", key) for number, key in enumerate(keys)]
