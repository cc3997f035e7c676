"""`KmsClient` with several keys, some of them denied, and its log lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.errors import KeyDenied
from tests.support.security.envelopes import TOKEN, envelope
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import Reply


@pytest.mark.parametrize("which", ["primary", "previous", "unknown"])
def test_a_key_that_denies_does_not_hide_the_one_that_opens(kms: Kms, which: str) -> None:
    sealed = envelope(kms).seal()
    other = kms.create_key()
    if which != "unknown":
        kms.disable(other)
    ids = {
        "primary": (other, [kms.key_arn]),
        "previous": (kms.create_key(), [other, kms.key_arn]),
        "unknown": (kms.create_key(), ["alias/no-such-key", kms.key_arn]),
    }
    key_id, previous = ids[which]
    assert envelope(kms, key_id=key_id, previous_key_ids=previous).open(sealed) == TOKEN


def test_the_denial_is_raised_if_no_key_unwraps(kms: Kms) -> None:
    sealed = envelope(kms).seal()
    kms.disable(kms.key_arn)
    with pytest.raises(KeyDenied, match="disabled"):
        envelope(kms, key_id=kms.create_key(), previous_key_ids=[kms.key_arn]).open(sealed)


def test_a_kind_of_failure_is_logged_once_in_ten_seconds(kms: Kms) -> None:
    process = envelope(kms)
    kms.faults.error("ThrottlingException")
    with capture_logs() as lines:
        for _ in range(8):
            with pytest.raises(Exception, match=r"KMS|key service"):
                process.seal()
    failed = {"log_level": "warning", "operation": "GenerateDataKey", "outcome": "ThrottlingException"}
    assert [line for line in lines if line["event"] == "kms_request_failed"] == [
        {**failed, "event": "kms_request_failed"}
    ]
    assert [line["state"] for line in lines if line["event"] == "kms_breaker"] == ["open"]


def test_an_unusual_error_code_is_neither_label_nor_log_line(kms: Kms) -> None:
    process = envelope(kms)
    reply = Reply.of_error("x@example.com " * 1000)
    kms.faults.answer(400, body=reply.body, content_type=reply.content_type)
    with capture_logs() as lines, pytest.raises(KeyDenied):
        process.seal()
    assert all("example" not in name for name in process.counters.counts)
    assert "example" not in json.dumps(lines)


_SCRIPT = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s")
from app.security.encryption import get_encryption_service
service = get_encryption_service()
print(service.decrypt_token(service.encrypt_token("a-secret-token", "user"), "user"))
"""


def test_a_script_that_logs_everything_logs_no_data_key(kms: Kms, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", **kms.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "a-secret-token\n"
    assert "botocore" in done.stderr, "it does log"
    assert "Plaintext" not in done.stderr
