"""AWS KMS as the vault's key service: GenerateDataKey and Decrypt, within a deadline and with the vault's errors.

<https://docs.aws.amazon.com/kms/latest/APIReference/API_GenerateDataKey.html>,
<https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import structlog
from botocore.exceptions import NoCredentialsError

from app.errors import EncryptionError, IntegrityError, KeyDenied, KeyUnavailable
from app.security.aead import KEY_BYTES
from app.security.counters import EncryptionCounters
from app.security.kms.circuit_breaker import CircuitBreaker, DenialBreaker
from app.security.kms.errors import (
    AWS_ERRORS,
    WHY_DENIED,
    IncorrectKeyError,
    concerns_credentials,
    error_name,
    vault_error_of,
)
from app.security.kms.key_service import GeneratedDataKey
from app.security.kms.package_format import MAXIMUM_NAME_CHARACTERS, MAXIMUM_WRAPPED_BYTES

KmsObserver = Callable[[str], AbstractContextManager[object]]

DEADLINE_SECONDS: Final = 2.5
CONCURRENT_REQUESTS: Final = 64
STUCK_REQUESTS: Final = 256
RECONNECT_SECONDS: Final = 5.0
LOG_SECONDS: Final = 10.0
TIMEOUT: Final = "Timeout"
_SUCCESS: Final = "success"
_ATTEMPTS: Final = 2
_log = structlog.get_logger()


class KmsClient:
    """A `KeyService`: generates data keys under `key_id`, and unwraps those of `key_id` and `previous_key_ids`.

    `client` is boto3's KMS client with retries off, or `None` if credentials are missing so far; `reconnect` returns
    another one or raises `KeyDenied`. Each request runs in a thread that is abandoned at the deadline, because
    botocore's time-outs bound single reads only, and nothing bounds the lookup of a host name. `observe` gets the
    operation; its context is entered and left in the caller's thread. Safe for concurrent use.
    """

    def __init__(
        self,
        *,
        client: Any | None,  # noqa: ANN401  boto3's clients have no static type
        key_id: str,
        breaker: CircuitBreaker,
        denials: DenialBreaker,
        counters: EncryptionCounters,
        previous_key_ids: Sequence[str] = (),
        deadline_seconds: float = DEADLINE_SECONDS,
        reconnect: Callable[[], Any] | None = None,
        observe: KmsObserver = nullcontext,
    ) -> None:
        self._client = client
        self._reconnect = reconnect
        self._next_reconnect_at = float("-inf")
        self._connecting = threading.Lock()
        self._key_ids = (key_id, *previous_key_ids)
        # the configured key behind each ARN that KMS has answered with; a few more than keys if an alias has moved
        self._key_id_of_arn: dict[str, str] = {}
        self._breaker = breaker
        self._denials = denials
        self._counters = counters
        self._observe = observe
        self._deadline_seconds = deadline_seconds
        self._threads = threading.BoundedSemaphore(STUCK_REQUESTS)
        self._closed = False
        self._log_again_at: dict[str, float] = {}
        # only KMS knows the key of an alias, because an alias may move
        self._key_arn = key_id if key_id.startswith("arn:") and ":key/" in key_id else None

    @property
    def key_name(self) -> str | None:
        """The ARN behind `key_id` in KMS's last answer; for an id or an alias `None` before the first answer."""
        return self._key_arn

    def generate_data_key(self, encryption_context: Mapping[str, str]) -> GeneratedDataKey:
        """Request a new data key; raises `KeyUnavailable` or `KeyDenied`."""
        deadline = time.monotonic() + self._deadline_seconds
        try:
            answer = self._call(
                "GenerateDataKey",
                deadline,
                KeyId=self._key_ids[0],
                KeySpec="AES_256",
                EncryptionContext=encryption_context,
            )
        except IncorrectKeyError:
            raise KeyDenied(WHY_DENIED["IncorrectKeyException"]) from None
        self._key_arn = answer["KeyId"]
        self._key_id_of_arn[answer["KeyId"]] = self._key_ids[0]
        return GeneratedDataKey(_data_key(answer["Plaintext"]), answer["CiphertextBlob"], answer["KeyId"])

    def unwrap_data_key(self, wrapped: bytes, encryption_context: Mapping[str, str], *, key_name: str) -> bytes:
        """Return the 32-byte data key; raises `KeyUnavailable`, `KeyDenied` or `IntegrityError`.

        Tries the configured keys one after the other and names each in its request, so that a package which names a
        key of another account cannot decide what the vault reads. The order is that of the settings, except that the
        configured key that KMS has answered for as `key_name` goes first: that saves a request for each row of a
        previous key, and a package that names a wrong key costs one request more.
        """
        deadline = time.monotonic() + self._deadline_seconds
        denied: KeyDenied | None = None
        for key_id in self._key_ids_by_hint(key_name):
            try:
                answer = self._call(
                    "Decrypt", deadline, KeyId=key_id, CiphertextBlob=wrapped, EncryptionContext=encryption_context
                )
            except IncorrectKeyError:
                continue
            except KeyDenied as error:  # this key may be disabled, and another one right
                denied = denied or error
                continue
            self._key_id_of_arn[answer["KeyId"]] = key_id
            if key_id == self._key_ids[0]:
                self._key_arn = answer["KeyId"]
            return _data_key(answer["Plaintext"])
        raise denied or KeyDenied(WHY_DENIED["IncorrectKeyException"])

    def close(self) -> None:
        """Close the connections. Requests in progress end as `KeyUnavailable`."""
        with self._connecting:
            self._closed = True
            if self._client is not None:
                self._client.close()

    def _key_ids_by_hint(self, key_arn: str) -> Iterable[str]:
        first = self._key_id_of_arn.get(key_arn, self._key_ids[0])
        return first, *(key_id for key_id in self._key_ids if key_id != first)

    def _call(self, operation: str, deadline: float, **parameters: object) -> Any:  # noqa: ANN401  boto3 has no static types
        if self._closed:
            raise KeyUnavailable("the connection to KMS is closed")
        with self._observe(operation):
            return self._call_through_breakers(operation, deadline, parameters)

    def _call_through_breakers(self, operation: str, deadline: float, parameters: dict[str, object]) -> Any:  # noqa: ANN401  boto3 has no static types
        request = (operation, parameters["KeyId"])
        self._denials.admit(request)
        generation = self._breaker.admit()
        try:
            answer = self._start(operation, deadline, parameters).result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._counters.kms_request(operation, TIMEOUT, self._deadline_seconds)
            self._log_failure(operation, TIMEOUT)
            self._breaker.failed(generation)
            raise KeyUnavailable("KMS did not answer in time") from None
        except KeyUnavailable:
            self._breaker.failed(generation)
            raise
        except (EncryptionError, IncorrectKeyError) as error:
            self._breaker.succeeded(generation)
            self._denials.answered(request, error if isinstance(error, KeyDenied) else None)
            raise
        self._breaker.succeeded(generation)
        self._denials.answered(request, None)
        return answer

    def _start(self, operation: str, deadline: float, parameters: dict[str, object]) -> Future[Any]:
        """Make the call in a new thread. A daemon, so a stuck one does not keep the process from ending."""
        if not self._threads.acquire(blocking=False):
            raise KeyUnavailable("the requests to KMS are stuck, and no more of them are started")
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                answer.set_result(self._request_with_retry(operation, deadline, parameters))
            except BaseException as error:  # noqa: BLE001  passed to the caller
                answer.set_exception(error)
            finally:
                self._threads.release()

        try:
            threading.Thread(target=run, name="kms", daemon=True).start()
        except RuntimeError:
            self._threads.release()
            raise KeyUnavailable("the process can start no more threads") from None
        return answer

    def _request_with_retry(self, operation: str, deadline: float, parameters: dict[str, object]) -> Any:  # noqa: ANN401  boto3 has no static types
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._request(operation, parameters)
            except KeyUnavailable:
                pause = random.uniform(0.02, 0.1)  # noqa: S311  spreads callers out
                if attempt == _ATTEMPTS or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
        raise AssertionError

    def _request(self, operation: str, parameters: dict[str, object]) -> Any:  # noqa: ANN401  boto3 has no static types
        started = time.monotonic()
        outcome = "Unexpected"
        try:
            client = self._connected_client()
            send = client.generate_data_key if operation == "GenerateDataKey" else client.decrypt
            answer = send(**parameters)
            _require_complete(operation, answer)
        except AWS_ERRORS as error:
            outcome = error_name(error)
            if concerns_credentials(error):
                self._start_reconnect()
            raise vault_error_of(error) from None
        else:
            outcome = _SUCCESS
            return answer
        finally:
            self._counters.kms_request(operation, outcome, time.monotonic() - started)
            if outcome != _SUCCESS:
                self._log_failure(operation, outcome)

    def _connected_client(self) -> Any:  # noqa: ANN401  boto3 has no static types
        if self._client is None:
            raise NoCredentialsError
        return self._client

    def _start_reconnect(self) -> None:
        """Make another client, because one that found no credentials never looks for them again.

        At most once in `RECONNECT_SECONDS`, and in a thread, because the search may take longer than any caller waits.
        """
        with self._connecting:
            if self._reconnect is None or self._closed or time.monotonic() < self._next_reconnect_at:
                return
            self._next_reconnect_at = time.monotonic() + RECONNECT_SECONDS
        threading.Thread(target=self._replace_client, args=(self._reconnect,), name="kms", daemon=True).start()

    def _replace_client(self, reconnect: Callable[[], Any]) -> None:
        try:
            client = reconnect()
        except KeyDenied:  # still no credentials
            return
        with self._connecting:
            before, self._client = self._client, client
            unneeded = client if self._closed else before
        if unneeded is not None:
            unneeded.close()

    def _log_failure(self, operation: str, outcome: str) -> None:
        """Log a failure, each kind at most once in `LOG_SECONDS`."""
        now = time.monotonic()
        if outcome != "IncorrectKeyException" and now >= self._log_again_at.get(outcome, 0.0):
            self._log_again_at[outcome] = now + LOG_SECONDS
            _log.warning("kms_request_failed", operation=operation, outcome=outcome)


def _require_complete(operation: str, answer: dict[str, Any]) -> None:
    """Raise `ValueError` if a member is missing: botocore reads a body that is cut, or no JSON, as an empty answer."""
    needed: dict[str, tuple[type, int]] = {
        "KeyId": (str, MAXIMUM_NAME_CHARACTERS),
        "Plaintext": (bytes, MAXIMUM_WRAPPED_BYTES),
    }
    if operation == "GenerateDataKey":
        needed["CiphertextBlob"] = (bytes, MAXIMUM_WRAPPED_BYTES)
    for name, (kind, longest) in needed.items():
        if not isinstance(answer.get(name), kind) or not 1 <= len(answer[name]) <= longest:
            raise ValueError


def _data_key(plaintext: bytes) -> bytes:
    if len(plaintext) != KEY_BYTES:
        raise IntegrityError("KMS returned a data key that is not 32 bytes")
    return plaintext
