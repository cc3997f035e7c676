"""`token-vault providers`, and what `doctor` says of OAuth providers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.oauth.stand_in import CLIENT_SECRET, Answer, oauth_stand_in
from tests.support.process.home import new_home, token_vault
from tests.support.stack.loopback import free_port


def _run(folder: Path, entries: dict[str, Any], *words: str) -> tuple[int, str, str]:
    settings = new_home(folder, OAUTH_PROVIDERS=json.dumps(entries)).settings
    done = token_vault(*words, folder=folder, settings=settings)
    assert CLIENT_SECRET not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def test_list_shows_each_provider_and_no_secret(tmp_path: Path) -> None:
    canvas = {"preset": "canvas", "client_id": "c", "client_secret": CLIENT_SECRET}
    entries = {
        "google": {"preset": "google", "client_id": "g", "client_secret": CLIENT_SECRET},
        "canvas": canvas | {"allowed_hosts": ["a.example", "b.example"], "previous_client_secret": CLIENT_SECRET},
    }
    code, out, _ = _run(tmp_path, entries, "providers", "list")
    _, canvas_row, google_row = (line.split("  ") for line in out.splitlines())
    assert code == 0
    assert [cell.strip() for cell in canvas_row if cell][:4] == ["canvas", "a.example and 1 more", "post", "2"]
    assert [cell.strip() for cell in google_row if cell] == [
        *["google", "oauth2.googleapis.com", "post", "1", "none", "180 days"]
    ]


def test_the_list_as_json_has_every_host(tmp_path: Path) -> None:
    entries = {
        "canvas": {
            "preset": "canvas",
            "client_id": "c",
            "client_secret": CLIENT_SECRET,
            "allowed_hosts": ["a.example", "b.example"],
        }
    }
    code, out, _ = _run(tmp_path, entries, "providers", "list", "--json")
    assert code == 0
    (canvas,) = json.loads(out)
    assert (canvas["provider"], canvas["hosts"], canvas["secrets"]) == ("canvas", ["a.example", "b.example"], 1)
    assert json.loads(_run(tmp_path, {}, "providers", "list", "--json")[1]) == []


def test_check_reaches_the_endpoint_and_compares_discovery(tmp_path: Path) -> None:
    with oauth_stand_in() as stand_in:
        entries = {"acme": stand_in.entry(discovery_url=f"{stand_in.origin}/discovery")}
        stand_in.always(Answer(body={"token_endpoint": stand_in.token_url}))
        code, out, err = _run(tmp_path, entries, "providers", "check")
        assert code == 0
        assert out == (
            f"ok    acme: 127.0.0.1:{stand_in.port} can be reached\n"
            "ok    acme: discovery names the entry's token endpoint\n"
        )
        assert "acme has allow_insecure" in err
        stand_in.always(Answer(body={"token_endpoint": "https://elsewhere.example/token"}))
        assert _run(tmp_path, entries, "providers", "check")[0] == 1
        assert stand_in.refreshes == 0
        assert not any("authorization" in request.headers or request.parameters for request in stand_in.requests)


def test_doctor_reports_a_provider_that_cannot_be_reached(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/token"
    entry = {"token_url": url, "client_auth": "post", "client_id": "a", "client_secret": CLIENT_SECRET}
    code, out, _ = _run(tmp_path, {"acme": entry | {"rotation": "none", "allow_insecure": True}}, "doctor")
    [failure] = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert code == 1
    assert "acme cannot be reached" in failure


@pytest.mark.parametrize("command", [("serve",), ("providers", "check"), ("providers", "list")])
def test_a_wrong_entry_stops_the_command_with_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    entry = {"preset": "google", "client_id": "g", "client_secrt": CLIENT_SECRET}
    code, _, err = _run(tmp_path, {"google": entry}, *command)
    assert code == 2
    assert err.splitlines()[-1] == (
        "Error: OAUTH_PROVIDERS: google: has an unknown member; did you mean client_secret?"
    )
