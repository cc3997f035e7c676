"""The two requests to AWS KMS that the vault makes, within a deadline and with the vault's errors.

<https://docs.aws.amazon.com/kms/latest/APIReference/API_GenerateDataKey.html>,
<https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError

from app.errors import EncryptionError, IntegrityError, KeyDenied, KeyUnavailable
from app.security.aead import KEY_BYTES
from app.security.aws_errors import error_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from app.security.breaker import CircuitBreaker
    from app.security.counters import EncryptionCounters

DEADLINE_SECONDS: Final = 2.5
CONCURRENT_REQUESTS: Final = 64
STUCK_REQUESTS: Final = 256
RECONNECT_SECONDS: Final = 5.0
LOG_SECONDS: Final = 10.0
_log = structlog.get_logger()
_ATTEMPTS: Final = 2
_SUCCESS: Final = "success"

# KMS throttles with HTTP 400, and botocore's own retries know some of these and not others, so ours decide.
_UNAVAILABLE: Final = frozenset(
    {
        "DependencyTimeoutException",
        "IDPCommunicationError",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailableException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500
_CREDENTIALS = (
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
_UNREACHABLE: Final = "KMS cannot be reached, or something answers in its place"
# what botocore's parser lets through where the body is not what KMS would send
_UNPARSABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
_UNKNOWN_CREDENTIALS: Final = "KMS does not know the AWS credentials"
_WRONG_SIGNATURE: Final = "KMS refuses the signature: the AWS secret access key or this machine's clock is wrong"
_WHY_DENIED: Final = {
    "AccessDeniedException": "KMS denies this: check the role's policy, the key policy and the grants",
    "DisabledException": "the KMS key is disabled",
    "ExpiredToken": "the AWS credentials have expired",
    "ExpiredTokenException": "the AWS credentials have expired",
    "IncorrectKeyException": "no configured KMS key wrapped this data key; KMS_PREVIOUS_KEY_IDS may lack one",
    "InvalidClientTokenId": _UNKNOWN_CREDENTIALS,
    "InvalidGrantTokenException": "a grant token is not valid",
    "InvalidSignatureException": _WRONG_SIGNATURE,
    "KMSInvalidStateException": "the KMS key's state forbids this; it may be scheduled for deletion",
    "NotFoundException": "KMS finds no such key; check KMS_KEY_ID and AWS_REGION",
    "SignatureDoesNotMatch": _WRONG_SIGNATURE,
    "UnrecognizedClientException": _UNKNOWN_CREDENTIALS,
}


@dataclass(frozen=True, slots=True)
class GeneratedDataKey:
    """A fresh data key: 32 bytes, the same wrapped by KMS, and the ARN of the key that wrapped it."""

    plaintext: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    key_arn: str


class KmsClient:
    """Generates and unwraps data keys under `key_id`; unwraps also under `previous_key_ids`.

    `client` is boto3's KMS client, with retries off; `reconnect` makes another one, for a client that found no
    credentials when it was made never looks again. Every call ends within the deadline: it runs in a thread of its own
    that is abandoned when time is up, for botocore's time-outs bound single reads and not the whole, and nothing bounds
    a look-up of the host's name. Safe for concurrent use.
    """

    def __init__(
        self,
        *,
        client: Any,  # noqa: ANN401  boto3's clients have no static type
        key_id: str,
        breaker: CircuitBreaker,
        counters: EncryptionCounters,
        previous_key_ids: Sequence[str] = (),
        deadline_seconds: float = DEADLINE_SECONDS,
        reconnect: Callable[[], Any] | None = None,
    ) -> None:
        self._client = client
        self._reconnect = reconnect
        self._reconnect_again_at = 0.0
        self._key_ids = (key_id, *previous_key_ids)
        self._breaker = breaker
        self._counters = counters
        self._deadline_seconds = deadline_seconds
        self._threads = threading.BoundedSemaphore(STUCK_REQUESTS)
        self._closed = False
        self._logged: dict[str, float] = {}
        # an alias may move, so what it stands for is KMS's to say
        self._key_arn = key_id if key_id.startswith("arn:") and ":key/" in key_id else None

    @property
    def key_arn(self) -> str | None:
        """The ARN behind `key_id` as KMS last gave it; of an id or an alias `None` before the first answer."""
        return self._key_arn

    def generate_data_key(self, encryption_context: Mapping[str, str]) -> GeneratedDataKey:
        """Ask for a new data key; raises `KeyUnavailable` or `KeyDenied`."""
        deadline = time.monotonic() + self._deadline_seconds
        try:
            answer = self._call(
                "GenerateDataKey",
                deadline,
                KeyId=self._key_ids[0],
                KeySpec="AES_256",
                EncryptionContext=encryption_context,
            )
        except _IncorrectKeyError:
            raise KeyDenied(_WHY_DENIED["IncorrectKeyException"]) from None
        self._key_arn = answer["KeyId"]
        return GeneratedDataKey(_data_key(answer["Plaintext"]), answer["CiphertextBlob"], answer["KeyId"])

    def unwrap_data_key(self, wrapped: bytes, encryption_context: Mapping[str, str]) -> bytes:
        """Return the 32-byte data key; raises `KeyUnavailable`, `KeyDenied` or `IntegrityError`."""
        return _data_key(self.decrypt(wrapped, encryption_context))

    def decrypt(self, blob: bytes, encryption_context: Mapping[str, str]) -> bytes:
        """Decrypt under the configured keys, one after the other, and under no other.

        KMS would find the key by itself; naming it means that a key of somebody else's account can't decide what we
        read.
        """
        deadline = time.monotonic() + self._deadline_seconds
        denied: KeyDenied | None = None
        for key_id in self._key_ids:
            try:
                answer = self._call(
                    "Decrypt", deadline, KeyId=key_id, CiphertextBlob=blob, EncryptionContext=encryption_context
                )
            except _IncorrectKeyError:
                continue
            except KeyDenied as error:  # this key may be disabled, and another one be the right one
                denied = denied or error
                continue
            if key_id == self._key_ids[0]:
                self._key_arn = answer["KeyId"]
            plaintext: bytes = answer["Plaintext"]
            return plaintext
        raise denied or KeyDenied(_WHY_DENIED["IncorrectKeyException"])

    def close(self) -> None:
        """Give up what is under way and close the connections."""
        self._closed = True
        self._client.close()

    def _call(self, operation: str, deadline: float, **parameters: object) -> Any:  # noqa: ANN401  boto3's answers
        if self._closed:
            message = "the connection to KMS is closed"
            raise KeyUnavailable(message)
        self._breaker.admit()
        try:
            answer = self._in_a_thread(operation, deadline, parameters).result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._note(operation, "Timeout")
            self._breaker.failed()
            message = "KMS did not answer in time"
            raise KeyUnavailable(message) from None
        except KeyUnavailable:
            self._breaker.failed()
            raise
        except (EncryptionError, _IncorrectKeyError):
            self._breaker.succeeded()  # it answered
            raise
        self._breaker.succeeded()
        return answer

    def _in_a_thread(self, operation: str, deadline: float, parameters: dict[str, object]) -> Future[Any]:
        """Start a thread that ends with the process, however stuck it is; one costs little beside a request."""
        if not self._threads.acquire(blocking=False):
            message = "the requests to KMS are stuck, and no more of them are started"
            raise KeyUnavailable(message)
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                answer.set_result(self._attempt(operation, deadline, parameters))
            except BaseException as error:  # noqa: BLE001  it is the caller's
                answer.set_exception(error)
            finally:
                self._threads.release()

        try:
            threading.Thread(target=run, name="kms", daemon=True).start()
        except RuntimeError:
            self._threads.release()
            message = "the process can start no more threads"
            raise KeyUnavailable(message) from None
        return answer

    def _attempt(self, operation: str, deadline: float, parameters: dict[str, object]) -> Any:  # noqa: ANN401
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._request(operation, parameters)
            except KeyUnavailable:
                pause = random.uniform(0.02, 0.1)  # noqa: S311  spreads callers out
                if attempt == _ATTEMPTS or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
        raise AssertionError

    def _request(self, operation: str, parameters: dict[str, object]) -> Any:  # noqa: ANN401
        send = self._client.generate_data_key if operation == "GenerateDataKey" else self._client.decrypt
        started = time.monotonic()
        outcome = "Unexpected"
        try:
            answer = _whole(operation, send(**parameters))
        except ClientError as error:
            outcome = error_name(error)
            code = str(error.response.get("Error", {}).get("Code", ""))
            raise _meaning(code, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) from None
        except _CREDENTIALS as error:
            outcome = type(error).__name__
            self._look_for_credentials_again()
            message = "no usable AWS credentials were found"
            raise KeyDenied(message) from None
        except (BotoConnectionError, HTTPClientError, ResponseParserError, OSError) as error:
            outcome = type(error).__name__
            raise KeyUnavailable(_UNREACHABLE) from None
        except BotoCoreError as error:
            outcome = type(error).__name__
            message = "the AWS settings do not make a valid request"
            raise KeyDenied(message) from None
        except _UNPARSABLE as error:
            outcome = type(error).__name__
            raise KeyUnavailable(_UNREACHABLE) from None
        else:
            outcome = _SUCCESS
            return answer
        finally:
            self._counters.kms_request(operation, outcome, time.monotonic() - started)
            if outcome != _SUCCESS:
                self._note(operation, outcome)

    def _look_for_credentials_again(self) -> None:
        now = time.monotonic()
        if self._reconnect is not None and now >= self._reconnect_again_at:
            self._reconnect_again_at = now + RECONNECT_SECONDS
            self._client = self._reconnect()

    def _note(self, operation: str, outcome: str) -> None:
        """Log what went wrong, each kind of it once in ten seconds."""
        now = time.monotonic()
        if outcome != "IncorrectKeyException" and now >= self._logged.get(outcome, 0.0):
            self._logged[outcome] = now + LOG_SECONDS
            _log.warning("kms_request_failed", operation=operation, outcome=outcome)


class _IncorrectKeyError(Exception):
    """KMS says that another key made this; the next configured one may be it."""


def _meaning(code: str, status: int) -> Exception:
    if code == "IncorrectKeyException":
        return _IncorrectKeyError()
    if code == "InvalidCiphertextException":
        message = "KMS does not authenticate the wrapped key in this context"
        return IntegrityError(message)
    if code in _UNAVAILABLE or status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR:
        message = "KMS throttles requests or is down"
        return KeyUnavailable(message)
    if not code or code.isdigit():  # botocore puts the status where an answer has no code, and KMS's always have one
        return KeyUnavailable(_UNREACHABLE)
    return KeyDenied(_WHY_DENIED.get(code, "KMS refuses the request; kms_request_failed in the log has its error code"))


def _whole(operation: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer, or raise `ValueError`: botocore takes a body that is no JSON, or cut, for an empty one."""
    needed = {"KeyId": str, "Plaintext": bytes}
    if operation == "GenerateDataKey":
        needed["CiphertextBlob"] = bytes
    if not all(isinstance(answer.get(name), kind) and answer[name] for name, kind in needed.items()):
        raise ValueError
    return answer


def _data_key(plaintext: bytes) -> bytes:
    if len(plaintext) != KEY_BYTES:
        message = "KMS returned a data key that is not 32 bytes"
        raise IntegrityError(message)
    return plaintext
