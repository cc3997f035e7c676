"""Checks of AWS KMS for `token-vault doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from app.cli.doctor_finding import DoctorFinding
from app.config.settings import Settings
from app.errors import KeyDenied
from app.security.kms.boto_clients import open_kms_client, open_sts_client
from app.security.kms.connection import ConnectionSettingsError, KmsConnection
from app.security.kms.errors import AWS_ERRORS, EXPIRED_AT_ONCE, NOT_AWS, error_name
from app.security.kms.key_access import ENCRYPTION_CONTEXT_SERVICE
from app.security.kms.setup import remedy_for, state_in_words, wraps_data_keys

Answer: TypeAlias = "dict[str, Any] | str"
"""The answer of KMS, or the name of the error."""

_CONTEXT: Final = {"user_id": "doctor", "service": ENCRYPTION_CONTEXT_SERVICE, "data_type": "auth_token"}
_WRONG_CONTEXT: Final = {**_CONTEXT, "service": "doctor-asks-with-a-wrong-service"}
_POLICY: Final = "`token-vault kms setup` prints the policy"
_DENIED: Final = "AccessDeniedException"
_STATES: Final = {"DisabledException": "Disabled", "KMSInvalidStateException": "PendingDeletion"}
_ADVICE: Final = {
    EXPIRED_AT_ONCE: "the AWS credentials expire as soon as they are renewed; check their source and the clock",
    NOT_AWS: "something other than KMS answers; check AWS_ENDPOINT_URL_KMS and the network",
    "NotFoundException": "there is no such key; check KMS_KEY_ID and AWS_REGION",
    "ExpiredTokenException": "the AWS credentials have expired; renew them",
    "IncompleteSignatureException": "the AWS credentials are damaged; set them again",
    "InvalidSignatureException": "the secret access key is wrong; set AWS_SECRET_ACCESS_KEY again",
    "UnrecognizedClientException": "AWS does not know these credentials; set them again",
    "NoCredentialsError": "no AWS credentials were found; see docs/kms.md, Credentials",
    "ThrottlingException": "KMS throttles the account; try again, and see docs/kms.md, Quotas",
    "ConnectTimeoutError": "KMS cannot be reached; check AWS_REGION and the network",
    "EndpointConnectionError": "KMS cannot be reached; check AWS_REGION, AWS_ENDPOINT_URL_KMS and the network",
    "ReadTimeoutError": "KMS does not answer in time; check the network, and try again",
}

_ok = partial(DoctorFinding.ok, "kms")
_warning = partial(DoctorFinding.warning, "kms")
_failure = partial(DoctorFinding.failure, "kms")


def kms_findings(settings: Settings) -> Iterator[DoctorFinding]:
    """Check identity, key state, permissions, the condition on the encryption context, and rotation.

    Sends at most seven requests, and two more for each previous key. Those with a wrong context should be denied.
    """
    connection = settings.kms_connection()
    try:
        client = open_kms_client(connection)
    except (ConnectionSettingsError, KeyDenied) as error:
        yield _failure(f"{error}: see docs/kms.md, Credentials")
        return
    with closing(client):
        yield _identity(connection)
        yield from _KeyChecks(client, settings).findings()


def _identity(connection: KmsConnection) -> DoctorFinding:
    endpoint = ""
    if connection.is_stand_in:
        endpoint = f", at the stand-in {urlsplit(connection.endpoint_url or '').hostname}"
    answer = _ask(lambda: open_sts_client(connection).get_caller_identity(), "Arn")
    if isinstance(answer, dict):
        return _ok(f"calling as {answer['Arn']}{endpoint}")
    if endpoint:
        return _ok(f"the calling identity is unknown{endpoint}, which needs none")
    return _warning(f"the calling identity is unknown: {_explained(answer)}")


class _KeyChecks:
    """The checks of the keys in `KMS_KEY_ID` and `KMS_PREVIOUS_KEY_IDS`."""

    def __init__(self, client: Any, settings: Settings) -> None:  # noqa: ANN401  boto3's clients have no static type
        self._client = client
        self._key_id = settings.kms_key_id
        self._previous_key_ids = settings.kms_previous_key_ids
        self._writes = settings.use_kms

    def findings(self) -> Iterator[DoctorFinding]:
        described = self._describe(self._key_id)
        generated = self._generate(_CONTEXT)
        problem = _key_problem(described, generated, _named(described, self._key_id))
        if problem is not None:
            yield problem
            yield _warning("permissions, context condition and rotation are checked once the key can be used")
        else:
            yield _key_works(described, generated)
            yield from self._permissions(generated)
            yield self._rotation(described, generated)
        for key_id in self._previous_key_ids:
            yield self._previous(key_id, generated)

    def _permissions(self, generated: Answer) -> Iterator[DoctorFinding]:
        blob = _blob(generated)
        decrypted = None if blob is None else self._decrypt(self._key_id, blob, _CONTEXT)
        yield _permission("GenerateDataKey", generated, needed=self._writes)
        if decrypted is None:
            yield _warning("Decrypt was not checked, because GenerateDataKey gave no ciphertext")
        else:
            yield _permission("Decrypt", decrypted)
        with_wrong_context: dict[str, Answer] = {}
        if isinstance(generated, dict):
            with_wrong_context["GenerateDataKey"] = self._generate(_WRONG_CONTEXT)
        if blob is not None and isinstance(decrypted, dict):
            with_wrong_context["Decrypt"] = self._decrypt(self._key_id, blob, _WRONG_CONTEXT)
        if with_wrong_context:
            yield _condition(with_wrong_context)

    def _rotation(self, described: Answer, generated: Answer) -> DoctorFinding:
        key_id = self._key_id  # may be an alias, which GetKeyRotationStatus does not take
        if isinstance(described, dict):
            key_id = described.get("Arn")
        elif isinstance(generated, dict):
            key_id = generated.get("KeyId")
        answer = _ask(lambda: self._client.get_key_rotation_status(KeyId=key_id), "KeyRotationEnabled")
        if isinstance(answer, dict):
            if answer["KeyRotationEnabled"] is True:
                return _ok(f"rotation is on, every {answer.get('RotationPeriodInDays', 365)} days")
            command = f"aws kms enable-key-rotation --key-id {key_id}"
            return _warning(f"rotation is off: `token-vault kms setup`, or {command}")
        if answer == _DENIED:
            return _ok("rotation cannot be read with least privilege; ask an administrator whether it is on")
        return _warning(f"rotation is unknown: {_explained(answer)}")

    def _previous(self, key_id: str, generated: Answer) -> DoctorFinding:
        """Check a previous key with a data key of the current one: "incorrect key" means that Decrypt is allowed."""
        name = f"the previous key {key_id}"
        blob = _blob(generated)
        described = self._describe(key_id)
        tried = "" if blob is None else self._decrypt(key_id, blob, _CONTEXT)
        state = _bad_state(described, tried)
        if state is not None:
            remedy = remedy_for(state, _named(described, key_id))
            return _failure(f"{name} is {state_in_words(state)}, so its rows cannot be read. {remedy}")
        if isinstance(tried, dict) or tried == "IncorrectKeyException":
            return _ok(f"{name} allows Decrypt")
        if tried == _DENIED:
            return _failure(f"Decrypt under {name} is denied: allow kms:Decrypt on it until its rows are rewrapped")
        if "NotFoundException" in (described, tried):
            return _failure(f"{name} does not exist here; check KMS_PREVIOUS_KEY_IDS and AWS_REGION")
        return _warning(f"{name} was not checked{f': {tried}' if tried else ''}")

    def _describe(self, key_id: str | None) -> Answer:
        answer = _ask(lambda: self._client.describe_key(KeyId=key_id), "KeyMetadata")
        return answer["KeyMetadata"] if isinstance(answer, dict) else answer

    def _generate(self, context: dict[str, str]) -> Answer:
        request = {"KeyId": self._key_id, "KeySpec": "AES_256", "EncryptionContext": context}
        return _ask(lambda: self._client.generate_data_key(**request), "CiphertextBlob")

    def _decrypt(self, key_id: str | None, blob: bytes, context: dict[str, str]) -> Answer:
        request = {"KeyId": key_id, "CiphertextBlob": blob, "EncryptionContext": context}
        return _ask(lambda: self._client.decrypt(**request), "Plaintext")


def _named(described: Answer, key_id: str | None) -> str:
    """Return the key's ARN, which every command takes, or what the setting says."""
    return str(described.get("Arn") if isinstance(described, dict) else key_id)


def _key_problem(described: Answer, generated: Answer, key_id: str) -> DoctorFinding | None:
    """Return why the key cannot be used, from DescribeKey, or from GenerateDataKey if DescribeKey is denied."""
    state = _bad_state(described, generated)
    if state is not None:
        return _failure(f"the key is {state_in_words(state)}. {remedy_for(state, key_id)}")
    if isinstance(described, dict):
        if wraps_data_keys(described):
            return None
        remedy = "`token-vault kms setup --alias alias/NAME` creates one, for KMS_KEY_ID"
        return _failure(f"{key_id} of KMS_KEY_ID is not a symmetric encryption key of your own; {remedy}")
    if isinstance(generated, dict) or described == generated == _DENIED:
        return None
    return _failure(f"the key cannot be used: {_explained(str(described if generated == _DENIED else generated))}")


def _key_works(described: Answer, generated: Answer) -> DoctorFinding:
    if isinstance(described, dict):
        return _ok(f"{described.get('Arn')} is enabled")
    works = "the key works; " if isinstance(generated, dict) else ""
    return _ok(f"{works}its state cannot be read with least privilege")


def _bad_state(described: Answer, used: Answer) -> str | None:
    """Return the key's state if it is known and not `Enabled`."""
    if isinstance(described, dict):
        state = str(described.get("KeyState"))
        return None if state == "Enabled" else state
    return _STATES.get(used) if isinstance(used, str) else None


def _permission(operation: str, answer: Answer, *, needed: bool = True) -> DoctorFinding:
    if isinstance(answer, dict):
        return _ok(f"{operation} is allowed")
    finding = _failure if needed else _warning
    unneeded = "" if needed else "; only writes need it"
    if answer == _DENIED:
        condition = f"with the condition service = {ENCRYPTION_CONTEXT_SERVICE}"
        remedy = f"allow kms:{operation} on the key for this caller, {condition}; {_POLICY}"
        return finding(f"{operation} is denied: {remedy}{unneeded}")
    return finding(f"{operation} fails: {_explained(answer)}{unneeded}")


def _condition(with_wrong_context: dict[str, Answer]) -> DoctorFinding:
    """Judge calls with a wrong `service`: without the condition they are allowed, or fail for the wrong context."""
    allowed = [
        operation
        for operation, answer in with_wrong_context.items()
        if isinstance(answer, dict) or answer == "InvalidCiphertextException"
    ]
    if allowed:
        remedy = f"add the condition kms:EncryptionContext:service = {ENCRYPTION_CONTEXT_SERVICE}; {_POLICY}"
        return _warning(
            f"the context condition is missing: {', '.join(allowed)} with another service is allowed: {remedy}"
        )
    unclear = [str(answer) for answer in with_wrong_context.values() if answer != _DENIED]
    if unclear:
        return _warning(f"the context condition is unknown: {_explained(unclear[0])}")
    return _ok("the context condition holds: a call with another service is denied")


def _blob(answer: Answer) -> bytes | None:
    return answer["CiphertextBlob"] if isinstance(answer, dict) else None


def _explained(name: str) -> str:
    return f"{name}: {_ADVICE.get(name, 'see docs/kms.md, Errors')}"


def _ask(call: Callable[[], dict[str, Any]], member: str) -> Answer:
    """Return the answer if it has `member`, else the name of the error."""
    try:
        answer = call()
    except AWS_ERRORS as error:
        return error_name(error)
    return answer if answer.get(member) is not None else NOT_AWS
