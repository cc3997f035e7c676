"""What each answer of a provider leaves: whom it blames, the row, and what a caller gets.

`python -m tests.support.oauth.outcomes` prints the table of docs/refresh.md. tests/refresh/test_outcomes.py walks it
and compares the document.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from app.api.problems import STATUS
from app.errors import GrantRejected, ProviderMisconfigured, ProviderUnavailable, RefreshInProgress, VaultError
from tests.support.oauth.stand_in import Answer
from tests.support.stack.loopback import LOOPBACK, free_port


class Row(StrEnum):
    """The row afterwards."""

    UNCHANGED = "unchanged"
    PAUSED = "unchanged; the provider is paused"
    PUT_OFF = "put off"
    ANSWER_LOST = "put off, `answer_lost`"
    NEEDS_REAUTH = "`needs_reauth`"
    REFRESHED = "new tokens"


_BLAME: Final[Mapping[type[VaultError] | None, str]] = {
    ProviderMisconfigured: "operator",
    ProviderUnavailable: "provider",
    GrantRejected: "user",
    None: "nobody",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One behaviour of a provider, and what it leaves of a token that has expired.

    `answer` is scripted, and `entry` changes the provider's entry in the registry. `may_be_spent` is what the vault
    believes of the refresh token; whether the stand-in has spent it, `answer.commits` says. `hangs` is a provider that
    does not answer while a caller waits. `lifetime_seconds`, `scopes` and `keeps_refresh_token` describe new tokens.
    """

    name: str
    error: type[VaultError] | None
    row: Row
    answer: Answer | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)
    base_url: str | None = None
    may_be_spent: bool = False
    reason: str | None = None
    retry_after: int | None = None
    hangs: bool = False
    lifetime_seconds: int = 3600
    scopes: tuple[str, ...] = ("before",)
    keeps_refresh_token: bool = False
    addition: str = ""  # to the row, in the document

    @property
    def blame(self) -> str:
        return _BLAME[self.error]

    @property
    def answered(self) -> type[VaultError] | None:
        """The error of the call that waited for the refresh."""
        return RefreshInProgress if self.hangs else self.error

    @property
    def is_spent(self) -> bool:
        """Whether the provider of the test has spent the refresh token."""
        return self.answer is not None and self.answer.commits


_HTML: Final = {"Content-Type": "text/html"}
_CANVAS: Final = {
    **dict.fromkeys(("token_url", "revoke_url", "client_auth", "rotation", "allow_insecure")),
    "preset": "canvas",
    "allowed_hosts": ["school.example"],
}
# never set: the stand-in lets go after a minute
_NEVER: Final = threading.Event()


def _error(code: str, status: int = 400) -> Answer:
    return Answer(status=status, body={"error": code})


TABLE: Final[tuple[Outcome, ...]] = (
    Outcome(
        name="wrong client secret",
        error=ProviderMisconfigured,
        row=Row.PAUSED,
        entry={"client_secret": "a-wrong-secret-7d20"},
    ),
    Outcome(name="unknown client", error=ProviderMisconfigured, row=Row.PAUSED, entry={"client_id": "unknown"}),
    Outcome(
        name="`unauthorized_client`", error=ProviderMisconfigured, row=Row.PAUSED, answer=_error("unauthorized_client")
    ),
    Outcome(
        name="404, 405, 410 or 415",
        error=ProviderMisconfigured,
        row=Row.PAUSED,
        answer=Answer(status=404, body="<html>not here</html>", headers=_HTML),
    ),
    Outcome(
        name="an address that is not public",
        error=ProviderMisconfigured,
        row=Row.PAUSED,
        entry={"token_url": "https://localhost/token", "revoke_url": None, "allow_insecure": None},
    ),
    Outcome(
        name="a `base_url` outside `allowed_hosts`",
        error=ProviderMisconfigured,
        row=Row.UNCHANGED,
        entry=_CANVAS,
        base_url="https://other.example",
    ),
    Outcome(name="`invalid_scope`", error=ProviderMisconfigured, row=Row.PUT_OFF, answer=_error("invalid_scope")),
    Outcome(
        name="an error code that the vault does not know",
        error=ProviderMisconfigured,
        row=Row.PUT_OFF,
        answer=_error("the_moon_is_full"),
    ),
    Outcome(
        name="`invalid_grant`, also with status 200",
        error=GrantRejected,
        row=Row.NEEDS_REAUTH,
        answer=_error("invalid_grant", status=200),
        reason="invalid_grant",
        addition=", the error code as reason",
    ),
    Outcome(
        name="one of the entry's `reauth_errors`",
        error=GrantRejected,
        row=Row.NEEDS_REAUTH,
        answer=_error("consent_required"),
        entry={"reauth_errors": ["consent_required"]},
        reason="consent_required",
        addition=", the error code as reason",
    ),
    Outcome(
        name="429 with `Retry-After`",
        error=ProviderUnavailable,
        row=Row.PUT_OFF,
        answer=Answer(status=429, headers={"Retry-After": "170"}),
        retry_after=170,
        addition=" for that time",
    ),
    Outcome(
        name="`temporarily_unavailable`, `slow_down`",
        error=ProviderUnavailable,
        row=Row.PUT_OFF,
        answer=_error("temporarily_unavailable"),
    ),
    Outcome(
        name="it cannot be resolved or reached, TLS fails",
        error=ProviderUnavailable,
        row=Row.PUT_OFF,
        entry={"token_url": f"http://{LOOPBACK}:{free_port()}/token"},
    ),
    *(
        Outcome(name=name, error=ProviderUnavailable, row=Row.ANSWER_LOST, answer=answer, may_be_spent=True)
        for name, answer in {
            "500, any 5xx, `server_error`": Answer(status=500, body="no"),
            "HTML with 200": Answer(body="<html>welcome</html>", headers=_HTML),
            "JSON that is cut short": Answer(body='{"access_token": "abc'),
            "a redirect": Answer(status=307, headers={"Location": "/elsewhere"}),
            "400 or 403 without an error code": Answer(status=403, body="<html>no</html>", headers=_HTML),
            "a token of 20 000 characters": Answer(commits=True, changes={"access_token": "a" * 20_000}),
            "more than 64 KiB": Answer(commits=True, changes={"more": "x" * 70_000}),
            "the connection is cut": Answer(commits=True, cut="answer"),
        }.items()
    ),
    *(
        Outcome(name=name, error=ProviderUnavailable, row=Row.ANSWER_LOST, answer=answer, may_be_spent=True, hangs=True)
        for name, answer in {
            "it hangs before the commit": Answer(hold=_NEVER),
            "it hangs after the commit": Answer(hold=_NEVER, commits=True),
        }.items()
    ),
    Outcome(
        name="no `expires_in`, or an unusable one",
        error=None,
        row=Row.REFRESHED,
        answer=Answer(commits=True, changes={"expires_in": None}),
        entry={"default_lifetime_seconds": 1_200},
        lifetime_seconds=1_200,
        addition="; they live for `default_lifetime_seconds`",
    ),
    Outcome(
        name="`expires_in` as text",
        error=None,
        row=Row.REFRESHED,
        answer=Answer(commits=True, changes={"expires_in": "1500"}),
        lifetime_seconds=1_500,
    ),
    Outcome(
        name="no refresh token",
        error=None,
        row=Row.REFRESHED,
        answer=Answer(body={"access_token": "fresh", "expires_in": 3600}),
        keeps_refresh_token=True,
        addition="; the stored refresh token stays",
    ),
    Outcome(
        name="another `scope`",
        error=None,
        row=Row.REFRESHED,
        answer=Answer(commits=True, changes={"scope": "after"}),
        scopes=("after",),
        addition=" and scopes",
    ),
)

HEADING: Final = (
    "| the provider | blamed | the refresh token is spent | row | answer, if the stored token has expired |"
)


def render() -> str:
    """Return the table as docs/refresh.md holds it."""
    return "\n".join([HEADING, "|---|---|---|---|---|", *map(_line, TABLE)]) + "\n"


def _line(outcome: Outcome) -> str:
    spent = "yes" if outcome.error is None else "perhaps" if outcome.may_be_spent else "no"
    answer = "200" if outcome.error is None else _problem(outcome.error)
    if outcome.hangs:
        answer = f"{_problem(RefreshInProgress)} while it hangs, then {answer}"
    if outcome.retry_after is not None:
        answer = f"{answer} with that time, up to an hour"
    cells = (outcome.name, outcome.blame, spent, f"{outcome.row}{outcome.addition}", answer)
    return f"| {' | '.join(cells)} |"


def status_of(error: type[VaultError]) -> int:
    """Return the HTTP status of an error's problem."""
    return next(STATUS[kind] for kind in error.__mro__ if kind in STATUS)


def _problem(error: type[VaultError]) -> str:
    return f"{status_of(error)} `{error.code}`"


if __name__ == "__main__":
    sys.stdout.write(render())
