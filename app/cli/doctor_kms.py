"""What `token-vault doctor` looks at in AWS KMS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from app.cli.doctor import Finding
from app.config.aws import is_stand_in, open_kms_client, open_sts_client
from app.config.settings import Settings, SettingsError
from app.errors import KeyDenied
from app.security.kms.errors import AWS_ERRORS, EXPIRED_AT_ONCE, NOT_AWS, error_name
from app.security.kms.setup import (
    ENCRYPTION_CONTEXT_SERVICE,
    remedy_for,
    state_in_words,
    wraps_data_keys,
)

Answer: TypeAlias = "dict[str, Any] | str"
"""What KMS answers, or the name of the error."""

_SUBJECT: Final = "kms"
_CONTEXT: Final = {"user_id": "doctor", "service": ENCRYPTION_CONTEXT_SERVICE, "data_type": "auth_token"}
_WRONG_CONTEXT: Final = {**_CONTEXT, "service": "doctor-asks-with-a-wrong-service"}
_PLAINTEXT: Final = b"doctor"
_POLICY: Final = "`token-vault kms setup` prints the policy"
_DENIED: Final = "AccessDeniedException"
_STATES: Final = {"DisabledException": "Disabled", "KMSInvalidStateException": "PendingDeletion"}
_ADVICE: Final = {
    EXPIRED_AT_ONCE: "the AWS credentials expire as soon as they are renewed; check their source and the clock",
    NOT_AWS: "something else answers in KMS's place; check AWS_ENDPOINT_URL_KMS and the way there",
    "NotFoundException": "there is no such key; check KMS_KEY_ID and AWS_REGION",
    "ExpiredTokenException": "the AWS credentials have expired; renew them",
    "IncompleteSignatureException": "the AWS credentials are damaged; set them again",
    "InvalidSignatureException": "the secret access key is wrong; set AWS_SECRET_ACCESS_KEY again",
    "UnrecognizedClientException": "AWS does not know these credentials; set them again",
    "NoCredentialsError": "no AWS credentials were found; see docs/kms.md, Credentials",
    "ThrottlingException": "KMS throttles the account; try again, and see docs/kms.md, Quotas",
    "ConnectTimeoutError": "KMS cannot be reached; check AWS_REGION and the way there",
    "EndpointConnectionError": "KMS cannot be reached; check AWS_REGION, AWS_ENDPOINT_URL_KMS and the way there",
    "ReadTimeoutError": "KMS does not answer in time; check the way there, and try again",
}


def kms_findings(settings: Settings) -> Iterator[Finding]:
    """Examine identity, key, permissions, the context condition and rotation; each finding says what to do.

    Eleven requests at most, with two more for each previous key. One of them is meant to be denied.
    """
    try:
        client = open_kms_client(settings)
    except (SettingsError, KeyDenied) as error:
        yield "FAIL", _SUBJECT, f"{error}: see docs/kms.md, Credentials"
        return
    with closing(client):
        yield _identity(settings)
        yield from _Examination(client, settings).findings()


def _identity(settings: Settings) -> Finding:
    place = ""
    if is_stand_in(settings.aws_endpoint_url_kms):
        place = f", at the stand-in {urlsplit(settings.aws_endpoint_url_kms or '').hostname}"
    answer = _ask(lambda: open_sts_client(settings).get_caller_identity(), "Arn")
    if isinstance(answer, dict):
        return "ok", _SUBJECT, f"calling as {answer['Arn']}{place}"
    if place:
        return "ok", _SUBJECT, f"it cannot be told who is calling{place}; there it does not matter"
    return "warn", _SUBJECT, f"it cannot be told who is calling: {_explained(answer)}"


class _Examination:
    def __init__(self, client: Any, settings: Settings) -> None:  # noqa: ANN401  boto3's clients have no static type
        self._client = client
        self._key_id = settings.kms_key_id
        self._previous_key_ids = settings.kms_previous_key_ids
        self._writes = settings.use_kms

    def findings(self) -> Iterator[Finding]:
        described = self._described(self._key_id)
        generated = self._generate(_CONTEXT)
        state = _state(described, generated)
        yield state
        if state[0] == "FAIL":
            yield (
                "warn",
                _SUBJECT,
                "permissions, context condition and rotation are not tried until the key can be used",
            )
        else:
            yield from self._permissions(generated)
            yield self._rotation(described, generated)
        for key_id in self._previous_key_ids:
            yield self._previous(key_id, generated)

    def _permissions(self, generated: Answer) -> Iterator[Finding]:
        encrypted = self._encrypt(_CONTEXT)
        blob = _blob(generated) or _blob(encrypted)
        decrypted = None if blob is None else self._decrypt(self._key_id, blob, _CONTEXT)
        yield _permission("GenerateDataKey", generated, needed=self._writes)
        if decrypted is None:
            yield "warn", _SUBJECT, "Decrypt could not be tried: there was nothing to try it on"
        else:
            yield _permission("Decrypt", decrypted)
        yield _permission("Encrypt", encrypted, needed=False)
        asked_wrongly: dict[str, Answer] = {}
        if isinstance(generated, dict):
            asked_wrongly["GenerateDataKey"] = self._generate(_WRONG_CONTEXT)
        if blob is not None and isinstance(decrypted, dict):
            asked_wrongly["Decrypt"] = self._decrypt(self._key_id, blob, _WRONG_CONTEXT)
        if isinstance(encrypted, dict):
            asked_wrongly["Encrypt"] = self._encrypt(_WRONG_CONTEXT)
        if asked_wrongly:
            yield _condition(asked_wrongly)

    def _rotation(self, described: Answer, generated: Answer) -> Finding:
        key_id = self._key_id  # which may be an alias, and these this call does not take
        if isinstance(described, dict):
            key_id = described.get("Arn")
        elif isinstance(generated, dict):
            key_id = generated.get("KeyId")
        answer = _ask(lambda: self._client.get_key_rotation_status(KeyId=key_id), "KeyRotationEnabled")
        if isinstance(answer, dict):
            if answer["KeyRotationEnabled"] is True:
                return "ok", _SUBJECT, f"rotation is on, every {answer.get('RotationPeriodInDays', 365)} days"
            return "warn", _SUBJECT, "rotation is off: `token-vault kms setup`, or aws kms enable-key-rotation"
        if answer == _DENIED:
            words = "rotation may not be asked for, as least privilege wants; have an administrator see that it is on"
            return "ok", _SUBJECT, words
        return "warn", _SUBJECT, f"whether rotation is on cannot be told: {_explained(answer)}"

    def _previous(self, key_id: str, generated: Answer) -> Finding:
        """Try a key that only reads on what another one wrapped: KMS says that it is the wrong one, or denies."""
        name = f"the previous key {key_id}"
        blob = _blob(generated)
        described = self._described(key_id)
        tried = "" if blob is None else self._decrypt(key_id, blob, _CONTEXT)
        state = _state_of(described, tried)
        if state is not None:
            words = f"is {state_in_words(state)}, so rows that need it cannot be read. {remedy_for(state)}"
            return "FAIL", _SUBJECT, f"{name} {words}"
        if isinstance(tried, dict) or tried == "IncorrectKeyException":
            return "ok", _SUBJECT, f"{name} may be used for Decrypt"
        if tried == _DENIED:
            return "FAIL", _SUBJECT, f"Decrypt under {name} is denied: allow kms:Decrypt on it until its rows are moved"
        if "NotFoundException" in (described, tried):
            return "FAIL", _SUBJECT, f"{name} does not exist here; check KMS_PREVIOUS_KEY_IDS and AWS_REGION"
        return "warn", _SUBJECT, f"{name} could not be tried{f': {tried}' if tried else ''}"

    def _described(self, key_id: str | None) -> Answer:
        answer = _ask(lambda: self._client.describe_key(KeyId=key_id), "KeyMetadata")
        return answer["KeyMetadata"] if isinstance(answer, dict) else answer

    def _generate(self, context: dict[str, str]) -> Answer:
        request = {"KeyId": self._key_id, "KeySpec": "AES_256", "EncryptionContext": context}
        return _ask(lambda: self._client.generate_data_key(**request), "CiphertextBlob")

    def _encrypt(self, context: dict[str, str]) -> Answer:
        request = {"KeyId": self._key_id, "Plaintext": _PLAINTEXT, "EncryptionContext": context}
        return _ask(lambda: self._client.encrypt(**request), "CiphertextBlob")

    def _decrypt(self, key_id: str | None, blob: bytes, context: dict[str, str]) -> Answer:
        request = {"KeyId": key_id, "CiphertextBlob": blob, "EncryptionContext": context}
        return _ask(lambda: self._client.decrypt(**request), "Plaintext")


def _state(described: Answer, generated: Answer) -> Finding:
    """Judge the key's state, from what DescribeKey says and else from what a use of the key says."""
    state = _state_of(described, generated)
    if state is not None:
        return "FAIL", _SUBJECT, f"the key is {state_in_words(state)}. {remedy_for(state)}"
    if isinstance(described, dict):
        if not wraps_data_keys(described):
            words = "is not a symmetric encryption key of your own; `token-vault kms setup` creates one"
            return "FAIL", _SUBJECT, f"the key of KMS_KEY_ID {words}"
        return "ok", _SUBJECT, f"{described.get('Arn')} is enabled"
    if isinstance(generated, dict):
        return "ok", _SUBJECT, "the key works; its state may not be asked for, as least privilege wants"
    if described == generated == _DENIED:
        return "ok", _SUBJECT, "the key's state may not be asked for, as least privilege wants"
    return (
        "FAIL",
        _SUBJECT,
        f"the key cannot be used: {_explained(str(described if generated == _DENIED else generated))}",
    )


def _state_of(described: Answer, used: Answer) -> str | None:
    """Return the key's state where it is known and not `Enabled`."""
    if isinstance(described, dict):
        state = str(described.get("KeyState"))
        return None if state == "Enabled" else state
    return _STATES.get(used) if isinstance(used, str) else None


def _permission(operation: str, answer: Answer, *, needed: bool = True) -> Finding:
    if isinstance(answer, dict):
        return "ok", _SUBJECT, f"{operation} is allowed"
    state = "FAIL" if needed else "warn"
    unneeded = "" if needed else "; the vault does without it" if operation == "Encrypt" else "; only writing needs it"
    if answer == _DENIED:
        words = f"allow kms:{operation} on the key for this caller, where service = {ENCRYPTION_CONTEXT_SERVICE}"
        return state, _SUBJECT, f"{operation} is denied: {words}; {_POLICY}{unneeded}"
    return state, _SUBJECT, f"{operation} fails: {_explained(answer)}{unneeded}"


def _condition(asked_wrongly: dict[str, Answer]) -> Finding:
    """Judge calls with a wrong `service`. Where one is not denied, KMS finds at most that the context is another."""
    allowed = [
        operation
        for operation, answer in asked_wrongly.items()
        if isinstance(answer, dict) or answer == "InvalidCiphertextException"
    ]
    if allowed:
        advice = f"add the condition kms:EncryptionContext:service = {ENCRYPTION_CONTEXT_SERVICE}; {_POLICY}"
        words = f"the context condition is missing: {', '.join(allowed)} with another service is not denied"
        return "warn", _SUBJECT, f"{words}: {advice}"
    unclear = [str(answer) for answer in asked_wrongly.values() if answer != _DENIED]
    if unclear:
        return "warn", _SUBJECT, f"whether the context is a condition cannot be told: {_explained(unclear[0])}"
    return "ok", _SUBJECT, "the context condition holds: a call with another service is denied"


def _blob(answer: Answer) -> bytes | None:
    return answer["CiphertextBlob"] if isinstance(answer, dict) else None


def _explained(name: str) -> str:
    return f"{name}: {_ADVICE.get(name, 'see docs/kms.md, Errors')}"


def _ask(call: Callable[[], dict[str, Any]], member: str) -> Answer:
    """Return the answer, which has `member`, or the name of the error."""
    try:
        answer = call()
    except AWS_ERRORS as error:
        return error_name(error)
    return answer if answer.get(member) is not None else NOT_AWS
