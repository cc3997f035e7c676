"""The two requests to AWS KMS that the vault makes, within a deadline and with the vault's errors.

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
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from botocore.exceptions import NoCredentialsError

from app.errors import EncryptionError, IntegrityError, KeyDenied, KeyUnavailable
from app.security.aead import KEY_BYTES
from app.security.counters import EncryptionCounters
from app.security.kms.circuit_breaker import CircuitBreaker, DenialMemory
from app.security.kms.errors import (
    AWS_ERRORS,
    WHY_DENIED,
    IncorrectKeyError,
    concerns_credentials,
    error_name,
    meaning_of,
    whole,
)

KmsWatch = Callable[[str], AbstractContextManager[object]]


DEADLINE_SECONDS: Final = 2.5
CONCURRENT_REQUESTS: Final = 64
STUCK_REQUESTS: Final = 256
RECONNECT_SECONDS: Final = 5.0
LOG_SECONDS: Final = 10.0
_log = structlog.get_logger()
_ATTEMPTS: Final = 2
_SUCCESS: Final = "success"
TIMEOUT: Final = "Timeout"


@dataclass(frozen=True, slots=True)
class GeneratedDataKey:
    """A fresh data key: 32 bytes, the same wrapped by KMS, and the ARN of the key that wrapped it."""

    plaintext: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    key_arn: str


class KmsClient:
    """Generates and unwraps data keys under `key_id`; unwraps also under `previous_key_ids`.

    `client` is boto3's KMS client, with retries off, or `None` where none can be made yet; `reconnect` makes another
    one, or raises `KeyDenied`. A denial is remembered for a second. Every call ends within the deadline: it runs in a
    thread of its own that is abandoned when time is up, for botocore's time-outs bound single reads and not the whole,
    and nothing bounds a look-up of the host's name. `watch` gets the operation, and is entered and left in the caller's
    thread. Safe for concurrent use.
    """

    def __init__(
        self,
        *,
        client: Any | None,  # noqa: ANN401  boto3's clients have no static type
        key_id: str,
        breaker: CircuitBreaker,
        denials: DenialMemory,
        counters: EncryptionCounters,
        previous_key_ids: Sequence[str] = (),
        deadline_seconds: float = DEADLINE_SECONDS,
        reconnect: Callable[[], Any] | None = None,
        watch: KmsWatch = nullcontext,
    ) -> None:
        self._client = client
        self._reconnect = reconnect
        self._reconnect_again_at = float("-inf")
        self._connecting = threading.Lock()
        self._key_ids = (key_id, *previous_key_ids)
        # by ARN, in KMS's own words; an alias may move, so there can be a few more than configured keys
        self._answered: dict[str, str] = {}
        self._breaker = breaker
        self._denials = denials
        self._counters = counters
        self._watch = watch
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
        except IncorrectKeyError:
            raise KeyDenied(WHY_DENIED["IncorrectKeyException"]) from None
        self._key_arn = answer["KeyId"]
        self._answered[answer["KeyId"]] = self._key_ids[0]
        return GeneratedDataKey(_data_key(answer["Plaintext"]), answer["CiphertextBlob"], answer["KeyId"])

    def unwrap_data_key(self, wrapped: bytes, encryption_context: Mapping[str, str], *, key_arn: str) -> bytes:
        """Return the 32-byte data key; raises `KeyUnavailable`, `KeyDenied` or `IntegrityError`.

        `key_arn` is what the package says that wrapped it: a hint, as in `decrypt`.
        """
        return _data_key(self.decrypt(wrapped, encryption_context, key_arn=key_arn))

    def decrypt(self, blob: bytes, encryption_context: Mapping[str, str], *, key_arn: str | None = None) -> bytes:
        """Decrypt under the configured keys, one after the other, and under no other.

        KMS would find the key by itself; naming it means that a key of somebody else's account can't decide what we
        read. The order is that of the settings, but for a configured key that KMS has answered for before: if that
        was `key_arn` it goes first, which spares a request for each row of a previous key. Nothing is left out, so
        a package that names a wrong key costs one request and gains nothing.
        """
        deadline = time.monotonic() + self._deadline_seconds
        denied: KeyDenied | None = None
        for key_id in self._in_turn(key_arn):
            try:
                answer = self._call(
                    "Decrypt", deadline, KeyId=key_id, CiphertextBlob=blob, EncryptionContext=encryption_context
                )
            except IncorrectKeyError:
                continue
            except KeyDenied as error:  # this key may be disabled, and another one be the right one
                denied = denied or error
                continue
            self._answered[answer["KeyId"]] = key_id
            if key_id == self._key_ids[0]:
                self._key_arn = answer["KeyId"]
            plaintext: bytes = answer["Plaintext"]
            return plaintext
        raise denied or KeyDenied(WHY_DENIED["IncorrectKeyException"])

    def _in_turn(self, key_arn: str | None) -> Iterable[str]:
        first = self._answered.get(key_arn or "", self._key_ids[0])
        return first, *(key_id for key_id in self._key_ids if key_id != first)

    def close(self) -> None:
        """Give up what is under way and close the connections."""
        with self._connecting:
            self._closed = True
            if self._client is not None:
                self._client.close()

    def _call(self, operation: str, deadline: float, **parameters: object) -> Any:  # noqa: ANN401  boto3's answers
        if self._closed:
            raise KeyUnavailable("the connection to KMS is closed")
        with self._watch(operation):
            return self._admitted(operation, deadline, parameters)

    def _admitted(self, operation: str, deadline: float, parameters: dict[str, object]) -> Any:  # noqa: ANN401  boto3 has no static types
        what = (operation, parameters["KeyId"])
        self._denials.admit(what)
        admitted = self._breaker.admit()
        try:
            answer = self._in_a_thread(operation, deadline, parameters).result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._counters.kms_request(operation, TIMEOUT, self._deadline_seconds)
            self._note(operation, TIMEOUT)
            self._breaker.failed(admitted)
            raise KeyUnavailable("KMS did not answer in time") from None
        except KeyUnavailable:
            self._breaker.failed(admitted)
            raise
        except (EncryptionError, IncorrectKeyError) as error:
            self._breaker.succeeded(admitted)  # it answered
            self._denials.answered(what, error if isinstance(error, KeyDenied) else None)
            raise
        self._breaker.succeeded(admitted)
        self._denials.answered(what, None)
        return answer

    def _in_a_thread(self, operation: str, deadline: float, parameters: dict[str, object]) -> Future[Any]:
        """Start a thread that ends with the process, however stuck it is; one costs little beside a request."""
        if not self._threads.acquire(blocking=False):
            raise KeyUnavailable("the requests to KMS are stuck, and no more of them are started")
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
            raise KeyUnavailable("the process can start no more threads") from None
        return answer

    def _attempt(self, operation: str, deadline: float, parameters: dict[str, object]) -> Any:  # noqa: ANN401  boto3 has no static types
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
            client = self._connected()
            send = client.generate_data_key if operation == "GenerateDataKey" else client.decrypt
            answer = whole(operation, send(**parameters))
        except AWS_ERRORS as error:
            outcome = error_name(error)
            if concerns_credentials(error):
                self._connect_anew()
            raise meaning_of(error) from None
        else:
            outcome = _SUCCESS
            return answer
        finally:
            self._counters.kms_request(operation, outcome, time.monotonic() - started)
            if outcome != _SUCCESS:
                self._note(operation, outcome)

    def _connected(self) -> Any:  # noqa: ANN401  boto3 has no static types
        if self._client is None:
            raise NoCredentialsError
        return self._client

    def _connect_anew(self) -> None:
        """Make another client, once in a while: one that found no credentials never looks for them again.

        In a thread, for looking for them may take longer than any caller waits.
        """
        with self._connecting:
            if self._reconnect is None or self._closed or time.monotonic() < self._reconnect_again_at:
                return
            self._reconnect_again_at = time.monotonic() + RECONNECT_SECONDS
        threading.Thread(target=self._take_over, args=(self._reconnect,), name="kms", daemon=True).start()

    def _take_over(self, reconnect: Callable[[], Any]) -> None:
        try:
            client = reconnect()
        except KeyDenied:  # there are none still
            return
        with self._connecting:
            before, self._client = self._client, client
            unneeded = client if self._closed else before
        if unneeded is not None:
            unneeded.close()

    def _note(self, operation: str, outcome: str) -> None:
        """Log what went wrong, each kind of it once in ten seconds."""
        now = time.monotonic()
        if outcome != "IncorrectKeyException" and now >= self._logged.get(outcome, 0.0):
            self._logged[outcome] = now + LOG_SECONDS
            _log.warning("kms_request_failed", operation=operation, outcome=outcome)


def _data_key(plaintext: bytes) -> bytes:
    if len(plaintext) != KEY_BYTES:
        raise IntegrityError("KMS returned a data key that is not 32 bytes")
    return plaintext
