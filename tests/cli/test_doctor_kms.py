"""`token-vault doctor` where KMS is configured: what it finds there, what it advises, and what it gives away."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.process.home import new_home, token_vault
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import Policy
from tests.support.stack.loopback import LOOPBACK, free_port

NEEDED = ("Decrypt", "GenerateDataKey")
LEAST = frozenset(f"kms:{operation}" for operation in ("Encrypt", *NEEDED))
CONDITION = {"service": "pulseplan"}
CANARY = "CANARY"


def _doctor(kms: Kms, folder: Path, **settings: str) -> CompletedProcess[str]:
    home = new_home(folder, **{**kms.environment(), "AWS_SECRET_ACCESS_KEY": CANARY, **settings})
    done = token_vault("doctor", folder=folder, settings=home.settings)
    assert done.stderr == ""
    for secret in (CANARY, home.settings["TOKEN_ENCRYPTION_KEY"], "made up", "Traceback"):
        assert secret not in done.stdout
    return done


def _findings(done: CompletedProcess[str]) -> list[tuple[str, str]]:
    """Return state and words of each finding about KMS."""
    lines = [line for line in done.stdout.splitlines() if line[6:].startswith("kms ")]
    return [(line[:6].strip(), line[6:].removeprefix("kms").strip()) for line in lines]


def _require(done: CompletedProcess[str], exit_code: int, state: str, *words: str) -> None:
    """Demand exactly one finding about KMS with these words, and that it has this state."""
    assert done.returncode == exit_code, done.stdout
    assert [state for state, said in _findings(done) if all(word in said for word in words)] == [state], done.stdout


def _failures(done: CompletedProcess[str]) -> int:
    return sum(state == "FAIL" for state, _ in _findings(done))


def test_a_complete_set_up_has_nothing_to_say_against(kms: Kms, tmp_path: Path) -> None:
    kms.enable_rotation(kms.key_arn)
    kms.faults.policy = Policy(LEAST | {"kms:DescribeKey", "kms:GetKeyRotationStatus"}, {})
    done = _doctor(kms, tmp_path)
    assert done.returncode == 0
    for words in ("calling as arn:", "is enabled", *(f"{name} is allowed" for name in NEEDED), "rotation is on"):
        _require(done, 0, "ok", words)


@pytest.mark.parametrize("name", ["arn", "alias"])
def test_least_privilege_is_enough(kms: Kms, tmp_path: Path, name: str) -> None:
    kms.faults.policy = Policy(LEAST, CONDITION)
    done = _doctor(kms, tmp_path, KMS_KEY_ID=kms.key_arn if name == "arn" else kms.alias)
    assert done.returncode == 0
    assert {state for state, _ in _findings(done)} == {"ok"}, done.stdout
    _require(done, 0, "ok", "a call with another service is denied")
    asked = [request for request in kms.requests if request.context.get("service") not in {None, "pulseplan"}]
    assert {request.operation for request in asked} == {"Encrypt", *NEEDED}


def test_a_missing_condition_and_rotation_that_is_off_are_warned_about(kms: Kms, tmp_path: Path) -> None:
    done = _doctor(kms, tmp_path, KMS_KEY_ID=kms.alias)
    _require(done, 0, "warn", "condition is missing", "kms:EncryptionContext:service", "kms setup")
    _require(done, 0, "warn", "rotation is off", "kms setup", "aws kms enable-key-rotation")


def test_a_condition_on_another_pair_is_not_the_condition(kms: Kms, tmp_path: Path) -> None:
    kms.faults.policy = Policy(LEAST, {"data_type": "auth_token"})
    _require(_doctor(kms, tmp_path), 0, "warn", "condition is missing: GenerateDataKey, Decrypt, Encrypt")


@pytest.mark.parametrize("operation", NEEDED)
def test_a_needed_permission_that_is_missing_fails(kms: Kms, tmp_path: Path, operation: str) -> None:
    kms.faults.policy = Policy(LEAST - {f"kms:{operation}"}, CONDITION)
    done = _doctor(kms, tmp_path)
    _require(done, 1, "FAIL", f"{operation} is denied", f"allow kms:{operation}", "kms setup")
    assert _failures(done) == 1
    (other,) = set(NEEDED) - {operation}
    _require(done, 1, "ok", f"{other} is allowed")


def test_encrypt_is_not_needed(kms: Kms, tmp_path: Path) -> None:
    kms.faults.policy = Policy(LEAST - {"kms:Encrypt"}, CONDITION)
    _require(_doctor(kms, tmp_path), 0, "warn", "Encrypt is denied", "does without")


def test_where_kms_only_reads_generate_data_key_is_not_needed(kms: Kms, tmp_path: Path) -> None:
    kms.faults.policy = Policy(LEAST - {"kms:GenerateDataKey"}, CONDITION)
    done = _doctor(kms, tmp_path, USE_KMS="false")
    _require(done, 0, "warn", "GenerateDataKey is denied", "only writing")
    _require(done, 0, "ok", "Decrypt is allowed")


@pytest.mark.parametrize("described", [True, False], ids=["DescribeKey", "least privilege"])
@pytest.mark.parametrize(
    ("change", "words"),
    [("disable", ("disabled", "enable-key")), ("schedule_deletion", ("deletion", "cancel-key-deletion"))],
)
def test_a_key_that_cannot_work_fails(
    kms: Kms, tmp_path: Path, change: str, words: tuple[str, ...], described: bool
) -> None:
    getattr(kms, change)(kms.key_arn)
    kms.faults.policy = None if described else Policy(LEAST, CONDITION)
    done = _doctor(kms, tmp_path)
    _require(done, 1, "FAIL", "the key is", *words)
    assert _failures(done) == 1


def test_a_key_that_is_not_there_fails(kms: Kms, tmp_path: Path) -> None:
    done = _doctor(kms, tmp_path, KMS_KEY_ID="alias/of-nothing")
    _require(done, 1, "FAIL", "no such key", "KMS_KEY_ID", "AWS_REGION")
    assert _failures(done) == 1


def test_previous_keys_are_tried_too(kms: Kms, tmp_path: Path) -> None:
    good, disabled = kms.create_key(), kms.create_key()
    kms.disable(disabled)
    kms.faults.policy = Policy(LEAST, CONDITION)
    done = _doctor(kms, tmp_path, KMS_PREVIOUS_KEY_IDS=json.dumps([good, disabled, "alias/of-nothing"]))
    _require(done, 1, "ok", good, "Decrypt")
    _require(done, 1, "FAIL", disabled, "disabled", "enable-key")
    _require(done, 1, "FAIL", "alias/of-nothing", "does not exist")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ThrottlingException", ("throttles", "try again")),
        ("UnrecognizedClientException", ("credentials",)),
    ],
)
def test_an_error_of_kms_is_explained(kms: Kms, tmp_path: Path, code: str, words: tuple[str, ...]) -> None:
    kms.faults.error(code)
    _require(_doctor(kms, tmp_path), 1, "FAIL", code, *words)


def test_what_answers_in_place_of_kms_is_not_believed_nor_quoted(kms: Kms, tmp_path: Path) -> None:
    kms.faults.answer(200, body=f"<html>{CANARY}</html>".encode())
    _require(_doctor(kms, tmp_path), 1, "FAIL", "in KMS's place", "AWS_ENDPOINT_URL_KMS")
    kms.faults.clear()
    kms.faults.error(f"{CANARY} and a whole sentence")
    _require(_doctor(kms, tmp_path), 1, "FAIL", "in KMS's place", "AWS_ENDPOINT_URL_KMS")


def test_kms_that_cannot_be_reached_fails(kms: Kms, tmp_path: Path) -> None:
    endpoint = f"http://{LOOPBACK}:{free_port()}"
    _require(_doctor(kms, tmp_path, AWS_ENDPOINT_URL_KMS=endpoint), 1, "FAIL", "cannot be reached")


def test_a_missing_region_fails_in_words(kms: Kms, tmp_path: Path) -> None:
    _require(_doctor(kms, tmp_path, AWS_REGION="", KMS_KEY_ID=kms.alias), 1, "FAIL", "AWS_REGION is needed")
