"""The stand-in for KMS: the behaviour of KMS that moto lacks, and its faults."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

from tests.support.paths import ROOT
from tests.support.stack.kms import REGION, Kms
from tests.support.stack.kms_faults import Policy

CONTEXT = {"user_id": "u", "service": "s"}


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def decrypt(kms: Kms, blob: bytes, **parameters: Any) -> bytes:
    answer = kms.client().decrypt(
        **{"CiphertextBlob": blob, "KeyId": kms.key_arn, "EncryptionContext": CONTEXT, **parameters}
    )
    return bytes(answer["Plaintext"])


def test_a_blob_decrypts_only_under_its_key_in_its_context(kms: Kms) -> None:
    blob = kms.encrypt(kms.key_arn, b"x", CONTEXT)
    for name in (kms.key_arn, kms.alias, kms.key_arn.rpartition("/")[2]):
        assert decrypt(kms, blob, KeyId=name) == b"x"
    assert code_of(lambda: decrypt(kms, blob, KeyId=kms.create_key())) == "IncorrectKeyException"
    assert code_of(lambda: decrypt(kms, blob, KeyId="alias/nobody")) == "NotFoundException"
    # to moto, which joins keys and values as they come, the last one is the same
    for context in ({}, {"user_id": "u"}, {"user_id": "v", "service": "s"}, {"user_id": "u", "services": ""}):
        assert code_of(lambda: decrypt(kms, blob, EncryptionContext=context)) == "InvalidCiphertextException"  # noqa: B023  called at once
    assert code_of(lambda: decrypt(kms, blob[:-1])) == "InvalidCiphertextException"
    assert code_of(lambda: decrypt(kms, b"no blob")) == "InvalidCiphertextException"


def test_a_disabled_key_refuses_requests(kms: Kms) -> None:
    blob = kms.encrypt(kms.key_arn, b"x", CONTEXT)
    kms.disable(kms.key_arn)
    assert code_of(lambda: decrypt(kms, blob)) == "DisabledException"
    kms.enable(kms.key_arn)
    assert decrypt(kms, blob) == b"x"
    kms.schedule_deletion(kms.key_arn)
    assert code_of(lambda: decrypt(kms, blob)) == "KMSInvalidStateException"
    kms.cancel_deletion(kms.key_arn)
    assert code_of(lambda: decrypt(kms, blob)) == "DisabledException", "as in KMS, it comes back disabled"


def test_the_policy_binds_everybody_but_the_administrator(kms: Kms) -> None:
    kms.faults.policy = Policy(frozenset({"kms:Decrypt"}), {"service": "s"})
    blob = kms.encrypt(kms.key_arn, b"x", CONTEXT)
    other = kms.encrypt(kms.key_arn, b"x", {"service": "other"})
    assert decrypt(kms, blob) == b"x"
    assert code_of(lambda: decrypt(kms, other, EncryptionContext={"service": "other"})) == "AccessDeniedException"
    assert code_of(lambda: kms.client().describe_key(KeyId=kms.key_arn)) == "AccessDeniedException"
    assert kms.operations() == ["Decrypt", "Decrypt", "DescribeKey"]


def test_faults_apply_to_the_chosen_requests(kms: Kms) -> None:
    client = kms.client()

    def outcome() -> str:
        try:
            client.generate_data_key(KeyId=kms.key_arn, KeySpec="AES_256")
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return "ok"

    kms.faults.error("A", times=2)
    kms.faults.error("B", every=3)
    kms.faults.error("C", operation="Decrypt")
    assert [outcome() for _ in range(8)] == ["A", "A", "ok", "ok", "B", "ok", "ok", "B"]
    assert code_of(lambda: decrypt(kms, b"x")) == "C", "faults differ by operation"
    kms.faults.clear()
    assert outcome() == "ok"


def test_connections_are_cut_and_refused_until_clear(kms: Kms) -> None:
    def describe() -> object:
        return kms.client().describe_key(KeyId=kms.key_arn)

    kms.faults.cut(times=1)
    with pytest.raises(ConnectionClosedError):
        describe()
    kms.faults.down()
    kms.faults.down()
    with pytest.raises(EndpointConnectionError):
        describe()
    kms.faults.clear()
    assert describe()


def test_the_module_serves_until_sigterm() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.stack.kms"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            environment = json.loads(process.stdout.readline())
            assert set(environment) == {"AWS_ENDPOINT_URL_KMS", "KMS_KEY_ID"}
            client = boto3.client(
                "kms",
                region_name=REGION,
                endpoint_url=environment["AWS_ENDPOINT_URL_KMS"],
                aws_access_key_id="any",
                aws_secret_access_key="any",
            )
            answer = client.generate_data_key(KeyId=environment["KMS_KEY_ID"], KeySpec="AES_256")
            assert len(answer["Plaintext"]) == 32
            client.close()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
