"""What must hold, whatever the database does: where each secret may be revealed, and which tokens must be readable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from app.api.answers import json_bytes, revealed_answer
from app.errors import VaultError
from app.security.context import SecretField
from app.security.formats import Family, legacy_spelling
from app.security.schemes import scheme_of
from app.tokens.events import SUCCESS, Operation, TokenEvent
from app.tokens.models import RevealedToken, StoredToken, TokenId
from tests.support.malicious_database.tables import Row
from tests.support.malicious_database.values import SECRET_COLUMNS

_BINDING: Final = frozenset({Operation.REWRAP, Operation.ROTATE})  # they make new ciphertexts of what they opened


@dataclass(frozen=True, slots=True)
class Place:
    """Where a secret belongs."""

    token_id: TokenId
    field: SecretField
    base_url: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Both secrets of a token."""

    access: str
    refresh: str | None


@dataclass(slots=True)
class Model:
    """The secrets that callers stored, and what the audit trail said about PulsePlan's.

    - `places`: where each secret belongs
    - `old`: the users of the secrets in PulsePlan's formats, which the database may hold, as from an old backup
    - `untouched`: the secrets of tokens that the vault alone has written since they were stored
    - `urls`: the base URLs that callers, and rows in PulsePlan's formats, have given a token
    - `bound`: tokens for which an event says that a secret in PulsePlan's formats was bound to them
    """

    reads_legacy: bool
    places: dict[str, Place] = field(default_factory=dict)
    old: dict[str, str] = field(default_factory=dict)
    untouched: dict[TokenId, Pair] = field(default_factory=dict)
    urls: dict[TokenId, set[str | None]] = field(default_factory=dict)
    bound: set[TokenId] = field(default_factory=set)

    def give(self, token_id: TokenId, pair: Pair, base_url: str | None) -> None:
        """Note what a caller gives, before it is known whether the vault takes it."""
        self.places[pair.access] = Place(token_id, SecretField.ACCESS_TOKEN, base_url)
        if pair.refresh is not None:
            self.places[pair.refresh] = Place(token_id, SecretField.REFRESH_TOKEN, base_url)

    def keep_url(self, token_id: TokenId, pair: Pair, rotated: StoredToken) -> None:
        """Note the base URL that a rotation kept; it must not be the database's. Without one nobody is redirected."""
        assert rotated.base_url in {None, *self.urls[token_id]}, "a new secret follows an edited URL"
        for secret in filter(None, (pair.access, pair.refresh)):
            self.places[secret] = replace(self.places[secret], base_url=rotated.valid_base_url)

    def bind(self, events: Iterable[TokenEvent]) -> list[TokenId]:
        """Note, and return, the tokens to which these events say that an old secret was bound."""
        bound = [
            event.token_id
            for event in events
            if event.token_id is not None
            and (event.operation, event.outcome) in {(operation, SUCCESS) for operation in _BINDING}
            and Family.PULSEPLAN_LOCAL in event.opened
        ]
        self.bound.update(bound)
        return bound

    def touch(self, rows: Iterable[Row]) -> None:
        """Note rows that the database has written."""
        for row in rows:
            self.untouched.pop(token_id_of(row), None)

    def require_answer(
        self, asked: TokenId, answer: RevealedToken | VaultError, event: TokenEvent, *, include_refresh: bool
    ) -> None:
        """Require that the answer holds only secrets that belong there, and those of a token that nobody touched."""
        untouched = self.untouched.get(asked)
        if isinstance(answer, VaultError):
            assert untouched is None, f"a token that nobody touched is refused: {answer.code} {answer.detail}"
            return
        revealed = revealed_answer(answer, include_refresh=True)
        json_bytes(revealed)
        assert TokenId(revealed["user_id"], revealed["provider"], revealed["service_type"]) == asked
        row = answer.token
        opened = [row.access_ciphertext, *([row.refresh_ciphertext] if include_refresh else [])]
        needed = {scheme_of(ciphertext) for ciphertext in opened if ciphertext is not None}
        assert row.encryption_scheme is None or needed == {row.encryption_scheme}, "a row's false scheme is believed"
        pair = Pair(revealed["access_token"], revealed["refresh_token"])
        if untouched is not None:
            expected = untouched if include_refresh else replace(untouched, refresh=None)
            assert pair == expected, "a token that nobody touched has other secrets"
        for secret, column in zip((pair.access, pair.refresh), SecretField, strict=True):
            if secret is not None:
                self._require_place(secret, Place(asked, column, revealed["base_url"]), event)

    def _require_place(self, secret: str, place: Place, event: TokenEvent) -> None:
        if self.reads_legacy and secret in self.old:
            assert self.old[secret] == place.token_id.user_id, "an old secret is revealed to another user"
            said = Family.PULSEPLAN_LOCAL in event.opened or place.token_id in self.bound
            assert said, "an old secret is revealed, and no audit event names its format"
            return
        assert secret in self.places, "a secret that no caller stored"
        assert place == self.places[secret], "a secret is revealed elsewhere"


def token_id_of(row: Row) -> TokenId:
    return TokenId(row["user_id"], row["provider"], row["service_type"])


def shown_token_id_of(row: Row) -> TokenId:
    """Return the token id as a list shows it: bytes that are not UTF-8 are escaped."""

    def shown(text: str) -> str:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")

    return TokenId(*(shown(row[name]) for name in ("user_id", "provider", "service_type")))


def legacy_ciphertexts(row: Row) -> set[str]:
    """Return the ciphertexts of the row that are in PulsePlan's formats, each in one spelling."""
    texts = (row[column] for column in SECRET_COLUMNS)
    return {spelling for text in texts if text is not None and (spelling := legacy_spelling(text)) is not None}
