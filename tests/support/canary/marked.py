"""The secrets of one run, each unlike any other text."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.canary.searcher import Secret


def marked(label: str) -> str:
    """Return a text whose encodings all differ, and that no field and no header takes for its own."""
    return f'{label}"~/%é\\ {secrets.token_hex(16)}'


def _key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class Marked:
    """What callers send and what the service is configured with."""

    access: str = field(default_factory=lambda: marked("access"))
    rotated: str = field(default_factory=lambda: marked("rotated"))
    refresh: str = field(default_factory=lambda: marked("refresh"))
    misplaced: str = field(default_factory=lambda: marked("misplaced"))
    metadata: str = field(default_factory=lambda: marked("metadata"))
    master_key: str = field(default_factory=_key)
    previous_key: str = field(default_factory=_key)
    audit_key: str = field(default_factory=_key)
    collector_key: str = field(default_factory=lambda: f"collector-{secrets.token_hex(16)}")
    aws_access_key: str = field(default_factory=lambda: f"AKIA{secrets.token_hex(8).upper()}")
    aws_secret_key: str = field(default_factory=lambda: f"aws/{secrets.token_hex(16)}+x")

    def settings(self) -> dict[str, str]:
        return {
            "TOKEN_ENCRYPTION_KEY": self.master_key,
            "ENCRYPTION_KEY_VERSION": "2",
            "TOKEN_ENCRYPTION_PREVIOUS_KEYS": f'{{"1": "{self.previous_key}"}}',
            "AUDIT_KEY": self.audit_key,
            "AWS_ACCESS_KEY_ID": self.aws_access_key,
            "AWS_SECRET_ACCESS_KEY": self.aws_secret_key,
            "LOG_LEVEL": "DEBUG",
        }

    def tokens(self) -> list[Secret]:
        """Return what a reveal is for."""
        named = {"access token": self.access, "rotated token": self.rotated, "refresh token": self.refresh}
        return [Secret.of(label, text) for label, text in named.items()]

    def others(self, service_keys: Mapping[str, str], supabase_key: str | None) -> list[Secret]:
        """Return what no answer may ever hold."""
        found = [Secret.of("misplaced token", self.misplaced)]
        found += [Secret.of(f"service key {name}", key) for name, key in service_keys.items()]
        keys = {"master key": self.master_key, "previous master key": self.previous_key, "audit key": self.audit_key}
        for label, key in keys.items():
            found += [Secret.of(label, key), Secret(f"{label}, decoded", base64.b64decode(key))]
        # the access key's id goes to AWS in the clear with each request, and is no secret; the other one is
        found.append(Secret.of("AWS secret access key", self.aws_secret_key))
        found.append(Secret.of("the collector's key", self.collector_key))
        if supabase_key is not None:
            found.append(Secret.of("Supabase's key", supabase_key))
            found.append(Secret.of("the signature of Supabase's key", supabase_key.rpartition(".")[2]))
        return found
