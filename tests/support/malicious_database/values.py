"""The token ids and URLs of the callers, and the values that the database writes into each column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from app.stores.rows import COLUMNS
from app.tokens.models import TokenId
from tests.support.security.key_service import KEY_ARN
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stores.unreadable import DEEP

ALICE: Final = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
BOB: Final = "1e2feb89-414c-443c-9027-c4d1c386bbc4"
# each differs from the first in one member
TOKEN_IDS: Final = (
    TokenId(ALICE, "canvas", "default"),
    TokenId(BOB, "canvas", "default"),
    TokenId(ALICE, "google", "default"),
    TokenId(ALICE, "canvas", "b"),
)
URL: Final = "https://canvas.example.edu"
OTHER_URL: Final = "https://other.example.edu"
EVIL: Final = "https://attacker.example"

SECRET_COLUMNS: Final = ("access_token", "refresh_token")
NOT_UTF8: Final = "a\udcff"  # the byte 0xff, as `surrogateescape` reads it
_HUGE: Final = "local:v1" + 20_000 * "x"
_NO_CIPHERTEXTS: Final = ("", "nonsense", "v1:AAAA", "kms:{}", NOT_UTF8)
EDITS: Final[Mapping[str, Sequence[Any]]] = {
    "id": ["00000000-0000-4000-8000-000000000000", "ffffffff-ffff-4fff-bfff-ffffffffffff", "foreign", "", NOT_UTF8],
    "user_id": [ALICE, BOB, ALICE.upper(), NOT_UTF8],
    "provider": ["canvas", "google", NOT_UTF8],
    "service_type": ["default", "b", NOT_UTF8],
    "access_token": _NO_CIPHERTEXTS,
    "refresh_token": [None, *_NO_CIPHERTEXTS],
    "expires_at": [None, "2020-01-01T00:00:00+00:00", "infinity", "never"],
    "scopes": [None, '["everything"]', "{", "{everything}", "{{a},{b}}", "[" * 3_000 + "]" * 3_000],
    "email": [None, "attacker@example.com", NOT_UTF8],
    "provider_url": [None, "", URL, OTHER_URL, EVIL, "javascript:alert(1)", NOT_UTF8],
    "is_active": [None, 0, 1],
    "metadata": [
        "{}",
        "[]",
        "{",
        "null",
        DEEP,
        f'{{"a": "{NOT_UTF8}"}}',
        '{"a": NaN}',
        *(json.dumps({"base_url": value}) for value in (None, "", 7, True, [EVIL], {"a": EVIL}, EVIL, URL)),
        json.dumps({"base_url": OTHER_URL, "status": "ok"}),
        f'{{"base_url": "{URL}", "base_url": "{EVIL}"}}',
    ],
    "version": [0, 1, 2, -1, 2**53, 2**63 - 2, 2**63 - 1],
    "encryption_scheme": [None, "", "local:v1", "local:v2", "pulseplan-local:v1", f"kms:{KEY_ARN}", _HUGE, NOT_UTF8],
    "created_at": [None, "0001-01-01T00:00:00+14:00"],
    "updated_at": [None],
    "last_refreshed": ["2020-01-01T00:00:00+00:00", NOT_UTF8],
    "refresh_token_expires_at": [None, "never", NOT_UTF8],
    "refresh_generation": [0, 1, -1, 2**63 - 1],
    "refresh_holder": [None, ALICE, "nobody", NOT_UTF8],
    "refresh_attempts": [0, 1, -1, 2**31 - 1, 2**63 - 1],
    "refresh_retry_at": [None, "0001-01-01T00:00:00+14:00", "never"],
    "refresh_failure": [None, "answer_lost", _HUGE, NOT_UTF8],
}
assert EDITS.keys() == set(COLUMNS)


@cache
def old_ciphertext(secret: str, user_id: str) -> str:
    """Return PulsePlan's ciphertext, made once because its key takes 20 ms to derive."""
    return legacy_ciphertext(secret, user_id)
