"""The KMS checks of `token-vault doctor`: findings, advice and secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.doctor_finding import DoctorFinding, Severity
from app.cli.doctor_kms import kms_findings
from app.config.settings import Settings
from tests.support.process.home import new_home, token_vault
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import Policy
from tests.support.stack.loopback import LOOPBACK, free_port

NEEDED = ("Decrypt", "GenerateDataKey")
LEAST = frozenset(f"kms:{operation}" for operation in NEEDED)
CONDITION = {"service": "pulseplan"}
CANARY = "CANARY"


def _findings(kms: Kms, **settings: str) -> list[DoctorFinding]:
    """Return the findings with these settings; none of them may hold a secret or a text of KMS."""
    values = {**kms.environment(), "TOKEN_ENCRYPTION_KEY": MASTER_KEY, "AWS_SECRET_ACCESS_KEY": CANARY, **settings}
    lower = {name.lower(): value for name, value in values.items() if value}
    found = list(kms_findings(Settings(_env_file=None, **lower)))  # type: ignore[call-arg, arg-type]  # pydantic-settings takes `_env_file`, and fields from elsewhere
    for secret in (CANARY, MASTER_KEY, "made up"):
        assert [one for one in found if secret in one.text] == []
    assert {one.subject for one in found} == {"kms"}
    return found


def _require(found: list[DoctorFinding], severity: Severity, *words: str) -> None:
    """Require exactly one finding with all of these words, and that it has this severity."""
    assert [one.severity for one in found if all(word in one.text for word in words)] == [severity], found


def _failures(found: list[DoctorFinding]) -> int:
    return sum(one.severity is Severity.FAILURE for one in found)


def _severities(found: list[DoctorFinding]) -> set[Severity]:
    return {one.severity for one in found}


@pytest.mark.parametrize("denied", [(), ("GenerateDataKey",)], ids=["complete", "a permission is missing"])
def test_doctor_prints_the_findings_and_no_secret(kms: Kms, tmp_path: Path, denied: tuple[str, ...]) -> None:
    kms.faults.policy = Policy(LEAST - {f"kms:{operation}" for operation in denied}, CONDITION)
    home = new_home(tmp_path, **{**kms.environment(), "AWS_SECRET_ACCESS_KEY": CANARY})
    done = token_vault("doctor", folder=tmp_path, settings=home.settings)
    lines = [line for line in done.stdout.splitlines() if line[6:].startswith("kms ")]
    assert (done.returncode, done.stderr) == (1 if denied else 0, "")
    assert [line[6:].split()[1] for line in lines if line.startswith("FAIL")] == list(denied)
    assert ("ok    kms           Decrypt is allowed" in lines) == (not denied), "nothing else gives a ciphertext"
    for secret in (CANARY, home.settings["TOKEN_ENCRYPTION_KEY"], "made up", "Traceback"):
        assert secret not in done.stdout


def test_state_and_rotation_are_reported_if_they_can_be_read(kms: Kms) -> None:
    kms.enable_rotation(kms.key_arn)
    # no condition, because the calls that read these carry no context
    kms.faults.policy = Policy(LEAST | {"kms:DescribeKey", "kms:GetKeyRotationStatus"}, {})
    found = _findings(kms)
    assert _failures(found) == 0
    for words in ("calling as arn:", "is enabled", *(f"{name} is allowed" for name in NEEDED), "rotation is on"):
        _require(found, Severity.OK, words)


@pytest.mark.parametrize("name", ["arn", "alias"])
def test_least_privilege_is_enough(kms: Kms, name: str) -> None:
    kms.faults.policy = Policy(LEAST, CONDITION)
    found = _findings(kms, KMS_KEY_ID=kms.key_arn if name == "arn" else kms.alias)
    assert _severities(found) == {Severity.OK}
    _require(found, Severity.OK, "a call with another service is denied")
    wrong = [request for request in kms.requests if request.context.get("service") not in {None, "pulseplan"}]
    assert {request.operation for request in wrong} == set(NEEDED)


def test_a_missing_condition_and_rotation_are_warnings(kms: Kms) -> None:
    found = _findings(kms, KMS_KEY_ID=kms.alias)
    assert _failures(found) == 0
    _require(found, Severity.WARNING, "condition is missing", "kms:EncryptionContext:service", "kms setup")
    _require(found, Severity.WARNING, "rotation is off", "kms setup", f"enable-key-rotation --key-id {kms.key_arn}")


def test_a_condition_on_another_pair_is_not_enough(kms: Kms) -> None:
    kms.faults.policy = Policy(LEAST, {"data_type": "auth_token"})
    found = _findings(kms)
    _require(found, Severity.WARNING, "condition is missing: GenerateDataKey, Decrypt")


@pytest.mark.parametrize("operation", NEEDED)
def test_a_missing_permission_is_the_only_failure(kms: Kms, operation: str) -> None:
    kms.faults.policy = Policy(LEAST - {f"kms:{operation}"}, CONDITION)
    found = _findings(kms)
    _require(found, Severity.FAILURE, f"{operation} is denied", f"allow kms:{operation}", "kms setup")
    assert _failures(found) == 1
    if operation == "Decrypt":
        _require(found, Severity.OK, "GenerateDataKey is allowed")
    else:
        _require(found, Severity.WARNING, "Decrypt was not checked")


def test_doctor_never_calls_encrypt(kms: Kms) -> None:
    kms.faults.policy = Policy(LEAST | {"kms:Encrypt"}, CONDITION)
    assert _severities(_findings(kms)) == {Severity.OK}
    assert "Encrypt" not in kms.operations()


def test_generate_data_key_is_not_needed_if_kms_only_reads(kms: Kms) -> None:
    kms.faults.policy = Policy(LEAST - {"kms:GenerateDataKey"}, CONDITION)
    found = _findings(kms, USE_KMS="false")
    assert _failures(found) == 0
    _require(found, Severity.WARNING, "GenerateDataKey is denied", "only writes")
    _require(found, Severity.WARNING, "Decrypt was not checked")


@pytest.mark.parametrize("described", [True, False], ids=["DescribeKey", "least privilege"])
@pytest.mark.parametrize(
    ("change", "words"),
    [("disable", ("disabled", "enable-key")), ("schedule_deletion", ("deletion", "cancel-key-deletion"))],
)
def test_an_unusable_key_is_the_only_failure(kms: Kms, change: str, words: tuple[str, ...], described: bool) -> None:
    getattr(kms, change)(kms.key_arn)
    kms.faults.policy = None if described else Policy(LEAST, CONDITION)
    found = _findings(kms)
    _require(found, Severity.FAILURE, "the key is", f"--key-id {kms.key_arn}", *words)
    assert _failures(found) == 1


def test_a_key_of_another_kind_leads_to_an_alias_of_a_new_one(kms: Kms) -> None:
    """Without --alias the command would look at KMS_KEY_ID again, and refuse it."""
    key_arn = kms.client().create_key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]
    found = _findings(kms, KMS_KEY_ID=key_arn)
    _require(found, Severity.FAILURE, key_arn, "not a symmetric encryption key", "kms setup --alias")


def test_a_missing_key_is_the_only_failure(kms: Kms) -> None:
    found = _findings(kms, KMS_KEY_ID="alias/of-nothing")
    _require(found, Severity.FAILURE, "no such key", "KMS_KEY_ID", "AWS_REGION")
    assert _failures(found) == 1


def test_previous_keys_are_checked(kms: Kms) -> None:
    good, disabled = kms.create_key(), kms.create_key()
    kms.disable(disabled)
    kms.faults.policy = Policy(LEAST, CONDITION)
    found = _findings(kms, KMS_PREVIOUS_KEY_IDS=json.dumps([good, disabled, "alias/of-nothing"]))
    _require(found, Severity.OK, good, "Decrypt")
    _require(found, Severity.FAILURE, disabled, "disabled", "enable-key")
    _require(found, Severity.FAILURE, "alias/of-nothing", "does not exist")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ThrottlingException", ("throttles", "try again")),
        ("UnrecognizedClientException", ("credentials",)),
    ],
)
def test_an_error_of_kms_is_explained(kms: Kms, code: str, words: tuple[str, ...]) -> None:
    kms.faults.error(code)
    _require(_findings(kms), Severity.FAILURE, code, *words)


def test_an_answer_that_is_not_from_kms_is_rejected_and_not_quoted(kms: Kms) -> None:
    kms.faults.answer(200, body=f"<html>{CANARY}</html>".encode())
    _require(_findings(kms), Severity.FAILURE, "something other than KMS", "AWS_ENDPOINT_URL_KMS")
    kms.faults.clear()
    kms.faults.error(f"{CANARY} and a whole sentence")
    _require(_findings(kms), Severity.FAILURE, "something other than KMS", "AWS_ENDPOINT_URL_KMS")


def test_unreachable_kms_is_a_failure(kms: Kms) -> None:
    endpoint = f"http://{LOOPBACK}:{free_port()}"
    _require(_findings(kms, AWS_ENDPOINT_URL_KMS=endpoint), Severity.FAILURE, "cannot be reached")


def test_a_missing_region_is_a_failure(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    _require(_findings(kms, AWS_REGION="", KMS_KEY_ID=kms.alias), Severity.FAILURE, "AWS_REGION is needed")
