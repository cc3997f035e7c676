"""Random histories of calls, compared with a model of the API, on both stores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from app.tokens.models import RESERVED_METADATA
from tests.support.api.fixtures import ON_EVERY_STORE
from tests.support.sizes import size

USERS = ["cd613e30-d8f1-4adf-91b7-584a2265b1f5", "1e2feb89-414c-443c-9027-c4d1c386bbc4"]

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text
)
metadata = st.dictionaries(
    text.filter(lambda key: key not in RESERVED_METADATA),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)),
    max_size=3,
)
token_ids = st.tuples(st.sampled_from(USERS), st.sampled_from(["canvas", "google"]), st.sampled_from(["default", "b"]))
fields = st.fixed_dictionaries(
    {"access_token": text},
    optional={
        "refresh_token": st.none() | text,
        "expires_at": st.none() | st.datetimes().map(lambda moment: f"{moment.isoformat()[:19]}Z"),
        "scopes": st.lists(text, max_size=3),
        "email": st.none() | st.just("a@b.test"),
        "base_url": st.none() | st.just("https://x.test"),
        "metadata": metadata,
    },
)
conditions = st.sampled_from(["none", "none", "current", "stale", "star", "create"])


@dataclass(frozen=True)
class Model:
    """The expected state of a token."""

    version: int
    fields: dict[str, Any]
    status: str = "ok"
    reason: str | None = None


class Histories(RuleBasedStateMachine):
    """Calls through `client`; `tokens` is the model that each answer is compared with."""

    client: ClassVar[httpx.Client]

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[tuple[str, str, str], Model] = {}
        self.highest_versions: dict[tuple[str, str, str], int] = {}

    @initialize()
    def start_empty(self) -> None:
        for user in USERS:
            assert self.client.delete(f"/v1/users/{user}/tokens").status_code == 200

    @rule(token_id=token_ids, body=fields, condition=conditions)
    def store(self, token_id: tuple[str, str, str], body: dict[str, Any], condition: str) -> None:
        current = self.tokens.get(token_id)
        answer = self.call("PUT", token_id, body, condition)
        if not self.holds(current, condition, creates=True):
            assert answer.status_code == 412, answer.text
            return
        assert answer.status_code == (201 if current is None else 200), answer.text
        given = {**_EMPTY, **body}
        if token_id[1] == "canvas" and given["refresh_token"] is None and given["expires_at"] is None:
            given["expires_at"] = answer.json()["expires_at"]
            assert given["expires_at"] is not None
        version = answer.json()["version"]
        if current is not None:
            assert version == current.version + 1
        else:
            assert version > self.highest_versions.get(token_id, 0), "no version of a deleted token comes again"
        self.tokens[token_id] = Model(version, given)

    @rule(token_id=token_ids, body=fields, condition=conditions)
    def rotate(self, token_id: tuple[str, str, str], body: dict[str, Any], condition: str) -> None:
        answer = self.call("POST", token_id, body, condition, suffix="/rotate")
        current = self.expect_change(token_id, answer, condition)
        if current is not None:
            given = {name: value for name, value in body.items() if (name, value) != ("expires_at", None)}
            fields = {**current.fields, **given}
            if "refresh_token" not in body and fields["base_url"] != current.fields["base_url"]:
                fields["refresh_token"] = None  # it does not follow another URL
            self.tokens[token_id] = replace(current, version=current.version + 1, fields=fields)

    @rule(
        token_id=token_ids,
        status=st.none() | st.sampled_from(["ok", "needs_reauth", "revoked", "error"]),
        changes=st.none() | metadata,
        condition=conditions,
    )
    def patch(
        self, token_id: tuple[str, str, str], status: str | None, changes: dict[str, Any] | None, condition: str
    ) -> None:
        if status is None and changes is None:
            return
        body = {key: value for key, value in (("status", status), ("metadata", changes)) if value is not None}
        answer = self.call("PATCH", token_id, body, condition)
        current = self.expect_change(token_id, answer, condition)
        if current is None:
            return
        if changes is not None:
            merged = {**current.fields["metadata"], **changes}
            kept = {key: value for key, value in merged.items() if value is not None}
            current = replace(current, fields={**current.fields, "metadata": kept})
        self.tokens[token_id] = replace(current, version=current.version + 1, status=status or current.status)

    @rule(token_id=token_ids, condition=conditions)
    def delete(self, token_id: tuple[str, str, str], condition: str) -> None:
        answer = self.call("DELETE", token_id, None, condition)
        if self.expect_change(token_id, answer, condition, success=204) is not None:
            self.forget(token_id)

    @rule(token_id=token_ids)
    def reveal(self, token_id: tuple[str, str, str]) -> None:
        current = self.tokens.get(token_id)
        answer = self.call("GET", token_id, None, "none", include="refresh_token")
        if current is None:
            assert answer.status_code == 404
        elif current.status != "ok":
            assert answer.status_code == 409
        else:
            body = answer.json()
            assert answer.headers["etag"] == f'"{current.version}"'
            assert _comparable(body) == _comparable({**current.fields, "version": current.version})

    @rule(user=st.sampled_from(USERS))
    def list_all(self, user: str) -> None:
        listed = self.client.get(f"/v1/users/{user}/tokens").json()["tokens"]
        expected = {token_id: model for token_id, model in self.tokens.items() if token_id[0] == user}
        found = {(one["user_id"], one["provider"], one["service_type"]): one for one in listed}
        assert found.keys() == expected.keys()
        assert len(listed) == len(found)
        for token_id, one in found.items():
            assert (one["version"], one["status"]) == (expected[token_id].version, expected[token_id].status)
            assert one["has_refresh_token"] is (expected[token_id].fields["refresh_token"] is not None)

    @rule(user=st.sampled_from(USERS))
    def erase(self, user: str) -> None:
        doomed = [token_id for token_id in self.tokens if token_id[0] == user]
        assert self.client.delete(f"/v1/users/{user}/tokens").json() == {"deleted": len(doomed)}
        for token_id in doomed:
            self.forget(token_id)

    def forget(self, token_id: tuple[str, str, str]) -> None:
        self.highest_versions[token_id] = self.tokens.pop(token_id).version

    def call(
        self,
        method: str,
        token_id: tuple[str, str, str],
        body: dict[str, Any] | None,
        condition: str,
        *,
        suffix: str = "",
        **query: str,
    ) -> httpx.Response:
        current = self.tokens.get(token_id)
        version = 1 if current is None else current.version
        headers = {
            "none": {},
            "current": {"If-Match": f'"{version}"'},
            "stale": {"If-Match": f'"{version + 1}"'},
            "star": {"If-Match": "*"},
            "create": {"If-None-Match": "*"} if method == "PUT" else {},
        }[condition]
        path = f"/v1/users/{token_id[0]}/tokens/{token_id[1]}{suffix}"
        params = {"service_type": token_id[2], **query}
        return self.client.request(method, path, json=body, params=params, headers=headers)

    def holds(self, current: Model | None, condition: str, *, creates: bool = False) -> bool:
        if condition == "create":
            return current is None or not creates
        return condition == "none" or (condition != "stale" and current is not None)

    def expect_change(
        self, token_id: tuple[str, str, str], answer: httpx.Response, condition: str, *, success: int = 200
    ) -> Model | None:
        current = self.tokens.get(token_id)
        if current is None:
            assert answer.status_code == 404, answer.text
            return None
        if not self.holds(current, condition):
            assert answer.status_code == 412, answer.text
            return None
        assert answer.status_code == success, answer.text
        return current


_EMPTY: dict[str, Any] = {
    "refresh_token": None,
    "expires_at": None,
    "scopes": [],
    "email": None,
    "base_url": None,
    "metadata": {},
}


def _comparable(token: dict[str, Any]) -> dict[str, Any]:
    names = ("access_token", "refresh_token", "expires_at", "scopes", "email", "base_url", "metadata", "version")
    return {name: token[name] for name in names}


@ON_EVERY_STORE
def test_every_history_matches_the_model(client: httpx.Client) -> None:
    run_state_machine_as_test(
        type("HistoriesOfThisStore", (Histories,), {"client": client}),
        settings=settings(
            max_examples=size(10, 40), stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
