"""`token-vault service-key`: create, list and revoke keys."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from app.callers.service_key_directory import ServiceKeyDirectory
from app.callers.service_keys import parse_key_list
from tests.support.process.home import (
    COMMAND,
    Home,
    at_its_start,
    files_of,
    new_home,
    new_master_key,
    require_refusal,
    run,
    token_vault,
)
from tests.support.process.key_commands import (
    KEY_FILE,
    create_key,
    entries_of,
    hash_of,
    home_with_key_file,
    service_key,
    write_key_file,
)

FULL_KEY = re.compile(r"ptv_[A-Za-z0-9_-]{43}")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_with_key_file(tmp_path)


def test_only_the_key_is_on_standard_output(home: Home) -> None:
    done = service_key(home, "create", "--service", "api", "--scope", "tokens:read")
    assert done.returncode == 0
    assert FULL_KEY.fullmatch(done.stdout.removesuffix("\n"))
    assert not FULL_KEY.search(done.stderr)


def test_the_file_is_private_and_holds_only_the_hash(home: Home) -> None:
    key = create_key(home)
    (entry,) = entries_of(home)
    assert entry == {"service": "api", "sha256": hash_of(key), "scopes": ["tokens:read"]}
    assert (home.folder / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert not [name for name, (content, _) in files_of(home.folder).items() if key.encode() in content]


def test_scopes_and_providers_are_repeatable(home: Home) -> None:
    create_key(home, "--scope", "tokens:write", "--provider", "google", "--provider", "canvas")
    (entry,) = entries_of(home)
    assert entry["scopes"] == ["tokens:read", "tokens:write"]
    assert entry["providers"] == ["canvas", "google"]


def test_90d_expires_in_90_days(home: Home) -> None:
    create_key(home, "--expires", "90d")
    expires_at = datetime.fromisoformat(entries_of(home)[0]["expires_at"])
    assert abs(expires_at - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=1)


def test_a_key_expires_at_an_rfc_3339_time_in_any_offset(home: Home) -> None:
    create_key(home, "--expires", "2099-03-01T02:00:00+02:00")
    expires_at = datetime.fromisoformat(entries_of(home)[0]["expires_at"])
    assert expires_at == datetime(2099, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--service", "no spaces"),
        ("--service", ""),
        ("--service", "a" * 65),
        ("--provider", "Canvas"),
        ("--provider", "../canvas"),
        ("--expires", "0d"),
        ("--expires", "90"),
        ("--expires", "999999d"),
        ("--expires", "soon"),
        ("--expires", "2099-03-01T00:00:00"),
        ("--expires", "2001-03-01T00:00:00Z"),
        ("--expires", "9999-12-31T23:59:59-01:00"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_and_writes_nothing(home: Home, option: str, value: str) -> None:
    arguments = {"--service": "api", "--scope": "tokens:read", option: value}
    done = service_key(home, "create", *(part for pair in arguments.items() for part in pair))
    require_refusal(done, 2, option)
    assert files_of(home.folder) == {}


@pytest.mark.parametrize("arguments", [("--service", "api"), ("--scope", "tokens:read"), ("--scope", "tokens:all")])
def test_a_missing_option_or_an_unknown_scope_is_refused(home: Home, arguments: tuple[str, ...]) -> None:
    done = service_key(home, "create", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert files_of(home.folder) == {}


def test_without_a_key_file_no_key_is_created(tmp_path: Path) -> None:
    done = service_key(new_home(tmp_path), "create", "--service", "api", "--scope", "tokens:read")
    require_refusal(done, 2, "SERVICE_KEYS_FILE")


def test_the_list_shows_each_keys_permissions_and_no_secret(home: Home) -> None:
    key = create_key(home, "--provider", "canvas", "--expires", "2099-03-01T00:00:00Z", service="api")
    other = create_key(home, service="jobs")
    listed = service_key(home, "list")
    assert listed.returncode == 0
    head, first, second = (line.split() for line in listed.stdout.splitlines())
    assert head == ["FINGERPRINT", "SERVICE", "STATE", "EXPIRES", "USERS", "PROVIDERS", "SCOPES"]
    assert first == [hash_of(key)[:12], "api", "alive", "2099-03-01T00:00:00+00:00", "all", "canvas", "tokens:read"]
    assert second == [hash_of(other)[:12], "jobs", "alive", "never", "all", "all", "tokens:read"]
    for secret in (key, other, hash_of(key), hash_of(other), home.settings["TOKEN_ENCRYPTION_KEY"]):
        assert secret not in listed.stdout + listed.stderr


def test_a_key_can_require_the_jwt_of_its_user(home: Home) -> None:
    create_key(home, "--on-behalf-of", "required")
    (entry,) = entries_of(home)
    assert entry["on_behalf_of"] == "required"


def test_the_list_names_the_keys_that_reveal_every_user(home: Home) -> None:
    limited = create_key(home, "--scope", "tokens:reveal", "--on-behalf-of", "required")
    reader = create_key(home)
    every = create_key(home, "--scope", "tokens:reveal", service="jobs")
    *lines, last = service_key(home, "list").stdout.splitlines()
    assert "on behalf of" in next(line for line in lines if line.startswith(hash_of(limited)[:12]))
    assert last.endswith(f": {hash_of(every)[:12]}.")
    assert "every user" in last
    assert hash_of(reader)[:12] not in last


def test_creating_a_key_that_reveals_every_user_says_so(home: Home) -> None:
    for options, warns in ((["--scope", "tokens:reveal"], True), (["--scope", "tokens:write"], False)):
        done = service_key(home, "create", "--service", "jobs", *options)
        assert FULL_KEY.fullmatch(done.stdout.removesuffix("\n"))
        assert ("every user" in done.stderr) is warns


@pytest.mark.parametrize("value", ["optional", "", True, None, ["required"]])
def test_an_unknown_on_behalf_of_makes_the_file_invalid(home: Home, value: object) -> None:
    entry = {"service": "api", "sha256": "0" * 64, "scopes": ["tokens:read"], "on_behalf_of": value}
    write_key_file(home, json.dumps([entry]))
    listed = service_key(home, "list")
    if value is None:
        assert listed.returncode == 0
    else:
        require_refusal(listed, 2, "entry 0.on_behalf_of")


def test_the_list_as_json_holds_the_same_and_no_secret(home: Home) -> None:
    key = create_key(home, "--scope", "tokens:reveal", "--provider", "canvas", "--expires", "2099-03-01T00:00:00Z")
    listed = service_key(home, "list", "--json")
    (found,) = json.loads(listed.stdout)
    assert (found["fingerprint"], found["alive"], found["reveals_every_user"]) == (hash_of(key)[:12], True, True)
    assert (found["providers"], found["expires_at"]) == (["canvas"], "2099-03-01T00:00:00+00:00")
    assert key not in listed.stdout
    assert hash_of(key) not in listed.stdout


def test_the_list_marks_expired_keys(home: Home) -> None:
    entry = {"service": "api", "sha256": "0" * 64, "scopes": ["tokens:read"], "expires_at": "2001-01-01T00:00:00Z"}
    write_key_file(home, json.dumps([entry]))
    assert "expired" in service_key(home, "list").stdout


def test_an_empty_list_explains_that_every_call_gets_401(home: Home) -> None:
    listed = service_key(home, "list")
    assert listed.returncode == 0
    assert "401" in listed.stdout


def test_a_key_is_revoked_by_its_fingerprint(home: Home) -> None:
    gone, kept = create_key(home), create_key(home)
    done = service_key(home, "revoke", hash_of(gone)[:12])
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert [entry["sha256"] for entry in entries_of(home)] == [hash_of(kept)]


def test_all_keys_of_a_service_are_revoked_by_its_name(home: Home) -> None:
    create_key(home, service="jobs")
    create_key(home, service="jobs")
    kept = create_key(home, service="api")
    done = service_key(home, "revoke", "--service", "jobs")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert [entry["sha256"] for entry in entries_of(home)] == [hash_of(kept)]


@pytest.mark.parametrize("arguments", [("0123456789ab",), ("--service", "nobody")])
def test_revoking_an_unknown_key_is_exit_code_1(home: Home, arguments: tuple[str, ...]) -> None:
    create_key(home)
    before = entries_of(home)
    require_refusal(service_key(home, "revoke", *arguments), 1, "nothing was changed")
    assert entries_of(home) == before


@pytest.mark.parametrize("arguments", [(), ("0123456789ab", "--service", "api"), ("abc",), ("ABCDEF012345",), ("",)])
def test_an_unclear_revocation_is_refused(home: Home, arguments: tuple[str, ...]) -> None:
    create_key(home)
    before = entries_of(home)
    require_refusal(service_key(home, "revoke", *arguments), 2)
    assert entries_of(home) == before


def test_a_fingerprint_of_two_keys_revokes_neither(home: Home) -> None:
    hashes = ["abcdef01" + digit * 56 for digit in "01"]
    write_key_file(home, json.dumps([{"service": "api", "sha256": each, "scopes": ["tokens:read"]} for each in hashes]))
    require_refusal(service_key(home, "revoke", "abcdef01"), 2, "give more digits")
    assert [entry["sha256"] for entry in entries_of(home)] == hashes


def test_the_commands_need_no_key_of_the_vault(home: Home) -> None:
    home = replace(home, settings={"SERVICE_KEYS_FILE": KEY_FILE})
    key = create_key(home)
    assert hash_of(key)[:12] in service_key(home, "list").stdout
    assert service_key(home, "revoke", hash_of(key)[:12]).returncode == 0


@pytest.mark.parametrize(("name", "like"), [("canvass", "canvas"), ("gogle", "google"), ("mircosoft", "microsoft")])
def test_a_provider_that_looks_like_a_typing_error_is_refused(home: Home, name: str, like: str) -> None:
    arguments = ("create", "--service", "api", "--scope", "tokens:read", "--provider", name)
    require_refusal(service_key(home, *arguments), 2, name, like, "--no-typo-check")
    assert files_of(home.folder) == {}
    assert service_key(home, *arguments, "--no-typo-check").returncode == 0
    assert entries_of(home)[0]["providers"] == [name]


@pytest.mark.parametrize("name", ["canvas", "outlook", "github", "canvas-beta", "google_drive"])
def test_a_known_or_quite_different_provider_is_allowed(home: Home, name: str) -> None:
    create_key(home, "--provider", name)
    assert entries_of(home)[0]["providers"] == [name]


def test_print_entry_prints_a_key_and_a_value_of_service_keys(tmp_path: Path) -> None:
    home = new_home(tmp_path, SERVICE_KEYS="")
    arguments = ("--service", "api", "--scope", "tokens:read", "--provider", "canvas", "--expires", "90d")
    done = service_key(home, "create", *arguments, "--print-entry")
    assert done.returncode == 0
    key, entry = done.stdout.splitlines()
    assert FULL_KEY.fullmatch(key)
    assert key not in done.stderr
    assert files_of(home.folder) == {}
    directory = ServiceKeyDirectory(fixed=parse_key_list(entry))
    assert directory.identify(key).service == "api"
    listed = token_vault("service-key", "list", folder=tmp_path, settings={"SERVICE_KEYS": entry})
    assert hash_of(key)[:12] in listed.stdout


@pytest.fixture
def audited(home: Home) -> Home:
    return replace(home, settings={**home.settings, "AUDIT_LOG": "audit/audit.jsonl", "AUDIT_KEY": new_master_key()})


def test_only_changes_need_the_audit_key(audited: Home) -> None:
    create_key(audited)
    without = replace(
        audited, settings={name: value for name, value in audited.settings.items() if name != "AUDIT_KEY"}
    )
    listed = service_key(without, "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    printed = service_key(without, "create", "--service", "api", "--scope", "tokens:read", "--print-entry")
    assert printed.returncode == 0
    before = entries_of(audited)
    for change in (("create", "--service", "api", "--scope", "tokens:read"), ("revoke", "--service", "api")):
        require_refusal(service_key(without, *change), 2, "AUDIT_KEY")
    assert entries_of(audited) == before


def _disturbed(home: Home, code: str, *arguments: str) -> CompletedProcess[str]:
    """Run `service-key` after this code."""
    settings = {**home.settings, **at_its_start(code, home.folder)}
    return run(COMMAND, "service-key", *arguments, folder=home.folder, settings=settings)


def _audit(home: Home, *arguments: str) -> CompletedProcess[str]:
    return token_vault("audit", *arguments, folder=home.folder, settings=home.settings)


def test_each_change_of_a_key_leaves_an_event(audited: Home) -> None:
    key = create_key(audited, "--provider", "canvas", "--expires", "2099-03-01T00:00:00Z")
    other = create_key(audited)
    assert len(service_key(audited, "revoke", "--service", "api").stdout.splitlines()) == 2
    assert service_key(audited, "list").returncode == 0
    events = [json.loads(line) for line in _audit(audited, "show", "--json").stdout.splitlines()]
    keys = [hash_of(each)[:12] for each in (key, other)]
    assert [(event["operation"], event["outcome"], event["service"], event["key"]) for event in events] == [
        *(("create_key", "success", "api", each) for each in keys),
        *(("revoke_key", "success", "api", each) for each in keys),
    ]
    user = pwd.getpwuid(os.getuid()).pw_name
    details = "scopes tokens:read; users all; providers canvas; expires 2099-03-01T00:00:00+00:00"
    assert events[0]["purpose"] == f"by {user}; {details}"
    assert _audit(audited, "verify").returncode == 0
    content = "".join(path.read_text() for path in (audited.folder / "audit").iterdir())
    assert key not in content
    assert hash_of(key) not in content


@pytest.fixture
def without_trail(audited: Home) -> Home:
    """A home with two keys and an audit trail that cannot be written, because its folder is a file."""
    for _ in range(2):
        create_key(audited)
    return replace(audited, settings={**audited.settings, "AUDIT_LOG": f"{KEY_FILE}/audit.jsonl"})


def _require_revocation_without_record(done: CompletedProcess[str], sha256: str) -> None:
    assert (done.returncode, done.stdout) == (3, f"Revoked {sha256[:12]} of api.\n"), done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: AUDIT_LOG cannot be written: this revocation has no record")


def test_a_key_whose_creation_cannot_be_recorded_is_not_made(without_trail: Home) -> None:
    before = files_of(without_trail.folder)
    create = ("create", "--service", "b", "--scope", "tokens:read")
    require_refusal(service_key(without_trail, *create), 2, "nothing was changed")
    assert files_of(without_trail.folder) == before


def test_a_revocation_that_cannot_be_recorded_is_made_and_says_so(without_trail: Home) -> None:
    """A full disk must not keep a stolen key in use."""
    first, second = (entry["sha256"] for entry in entries_of(without_trail))
    done = service_key(without_trail, "revoke", first[:12])
    _require_revocation_without_record(done, first)
    assert [entry["sha256"] for entry in entries_of(without_trail)] == [second]
    unknown = service_key(without_trail, "revoke", first[:12])
    require_refusal(unknown, 1, "nothing was changed")


def test_a_revocation_whose_trail_breaks_meanwhile_says_so(audited: Home) -> None:
    key = create_key(audited)
    done = _disturbed(audited, BREAK_THE_TRAIL, "revoke", hash_of(key)[:12])
    _require_revocation_without_record(done, hash_of(key))
    assert entries_of(audited) == []
    shown = [json.loads(line) for line in _audit(audited, "show", "--json").stdout.splitlines()]
    assert [(event["operation"], event["outcome"]) for event in shown][1:] == [("revoke_key", "no_outcome")]


# limits the size of files to what they have when the key file has been changed
BREAK_THE_TRAIL = """
import resource, sys

def limit(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/keys"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

sys.addaudithook(limit)
"""


# kills a command at the rename that changes the key file, or just after it
KILL = """
import os, signal, sys

def kill(event, arguments):
    if event == EVENT and str(arguments[0]).endswith(SUFFIX) and "keys" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""


FAIL = """
import errno, os, sys

def fail(event, arguments):
    if event == "os.rename" and "service-keys" in str(arguments[0]):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

sys.addaudithook(fail)
"""


@pytest.mark.parametrize(
    ("event", "suffix", "is_made"), [("os.rename", ".new", False), ("open", "/keys", True)], ids=["before", "after"]
)
def test_a_change_that_is_killed_leaves_an_intent(audited: Home, event: str, suffix: str, is_made: bool) -> None:
    stolen = create_key(audited)
    code = KILL.replace("EVENT", repr(event)).replace("SUFFIX", repr(suffix))
    arguments = ("create", "--service", "evil", "--scope", "tokens:read")
    assert _disturbed(audited, code, *arguments).returncode == -signal.SIGKILL
    assert ([entry["service"] for entry in entries_of(audited)] == ["api", "evil"]) == is_made
    assert _disturbed(audited, code, "revoke", hash_of(stolen)[:12]).returncode == -signal.SIGKILL
    assert (hash_of(stolen) not in [entry["sha256"] for entry in entries_of(audited)]) == is_made
    shown = [json.loads(line) for line in _audit(audited, "show", "--json").stdout.splitlines()]
    assert [(event["operation"], event["outcome"], event["service"]) for event in shown] == [
        ("create_key", "success", "api"),
        ("create_key", "no_outcome", "evil"),
        ("revoke_key", "no_outcome", "api"),
    ]
    assert shown[-1]["key"] == hash_of(stolen)[:12]
    if is_made:
        [evil] = [entry for entry in entries_of(audited) if entry["service"] == "evil"]
        assert shown[1]["key"] == evil["sha256"][:12]
    create_key(audited)  # its chain names the ends of the killed ones
    done = _audit(audited, "verify")
    assert done.returncode == 0, done.stdout


def test_a_change_that_fails_has_its_outcome_in_the_trail(audited: Home) -> None:
    create_key(audited)
    done = _disturbed(audited, FAIL, "create", "--service", "b", "--scope", "tokens:read")
    require_refusal(done, 2, "No space left on device; nothing was changed")
    shown = [json.loads(line) for line in _audit(audited, "show", "--json").stdout.splitlines()]
    assert [(event["service"], event["outcome"]) for event in shown] == [("api", "success"), ("b", "internal")]
    assert [entry["service"] for entry in entries_of(audited)] == ["api"]


def test_a_stream_of_audit_lines_is_not_mixed_with_the_key(audited: Home) -> None:
    home = replace(audited, settings={**audited.settings, "AUDIT_LOG": "-"})
    done = service_key(home, "create", "--service", "api", "--scope", "tokens:read")
    assert FULL_KEY.fullmatch(done.stdout.removesuffix("\n"))
    assert '"operation":"create_key"' in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_roots_audit_files_belong_to_the_owner_of_their_folder(audited: Home) -> None:
    (audited.folder / "audit").mkdir(mode=0o700)
    os.chown(audited.folder / "audit", 54_321, 54_322)
    create_key(audited)
    [file] = (audited.folder / "audit").iterdir()
    assert (file.stat().st_uid, file.stat().st_gid) == (54_321, 54_322)
