"""Faults of KMS that a test switches on and off."""

from __future__ import annotations

import enum
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

_ERROR_PAGE = b"<!DOCTYPE html><html><body><h1>Something went wrong</h1></body></html>"
JSON_TYPE = "application/x-amz-json-1.1"


@dataclass(frozen=True, slots=True)
class KmsRequest:
    """A request to KMS: the operation, such as `GenerateDataKey`, and its JSON body."""

    operation: str
    parameters: Mapping[str, Any]
    session_token: str | None = None

    @property
    def key_id(self) -> str | None:
        """The key, as id, ARN or alias."""
        return self.parameters.get("KeyId")

    @property
    def context(self) -> dict[str, str]:
        """The encryption context; empty if there is none."""
        return dict(self.parameters.get("EncryptionContext", {}))


@dataclass(frozen=True, slots=True)
class Policy:
    """A reduced IAM policy: actions, and pairs that the encryption context must have."""

    actions: frozenset[str]
    context: Mapping[str, str] = field(default_factory=dict)

    def allows(self, request: KmsRequest) -> bool:
        """Whether this request may pass."""
        has_pairs = self.context.items() <= request.context.items()
        return f"kms:{request.operation}" in self.actions and has_pairs


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in place of moto's."""

    status: int
    body: bytes = _ERROR_PAGE
    content_type: str = "text/html; charset=utf-8"

    @classmethod
    def of_error(cls, code: str, *, status: int = HTTPStatus.BAD_REQUEST) -> Reply:
        """Return an error in the format of KMS."""
        body = json.dumps({"__type": code, "message": f"made up: {code}"}).encode()
        return cls(status, body, JSON_TYPE)

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers."""
        return [
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            ("x-amzn-RequestId", str(uuid.uuid4())),
        ]


class Cut(enum.Enum):
    """When the connection ends without a complete answer."""

    BEFORE_THE_ANSWER = enum.auto()
    WITHIN_THE_ANSWER = enum.auto()


@dataclass(frozen=True, slots=True)
class KmsFault:
    """The fault of one request. Parts combine: a late answer can also be cut."""

    delay_seconds: float = 0.0
    reply: Reply | None = None
    cut: Cut | None = None
    # between any two bytes of the answer's body
    drip_seconds: float = 0.0


@dataclass(slots=True)
class _Armed:
    fault: KmsFault
    operation: str | None
    every: int
    remaining: int | None
    seen: int = 0


class KmsFaults:
    """The faults of one KMS; usable from every thread.

    `times` is the number of requests that meet a fault, by default all until `clear`. `every` limits it to each k-th
    request, `operation` to one such as `Decrypt`. A request meets one fault, the one injected first. The
    administrator's requests meet none.
    """

    def __init__(self, *, listen: Callable[[], None], refuse: Callable[[], None]) -> None:
        """`listen` makes KMS accept connections, `refuse` refuse them."""
        self._listen = listen
        self._refuse = refuse
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._cleared = threading.Event()
        # the permissions of the application; everything if `None`
        self.policy: Policy | None = None

    def inject(
        self, fault: KmsFault, *, times: int | None = None, every: int = 1, operation: str | None = None
    ) -> None:
        """Apply the fault to later requests."""
        with self._lock:
            self._armed.append(_Armed(fault, operation, every, times))

    def error(
        self,
        code: str,
        *,
        status: int = HTTPStatus.BAD_REQUEST,
        times: int | None = None,
        every: int = 1,
        operation: str | None = None,
    ) -> None:
        """Answer with this error code, as KMS would."""
        fault = KmsFault(reply=Reply.of_error(code, status=status))
        self.inject(fault, times=times, every=every, operation=operation)

    def answer(
        self,
        status: int,
        *,
        body: bytes = _ERROR_PAGE,
        content_type: str = "text/html; charset=utf-8",
        times: int | None = None,
        operation: str | None = None,
    ) -> None:
        """Answer with this status and, by default, an HTML page, as a proxy would."""
        self.inject(KmsFault(reply=Reply(status, body, content_type)), times=times, operation=operation)

    def succeed_with(self, members: Mapping[str, Any], *, operation: str | None = None) -> None:
        """Answer 200 with this JSON, which need not be what the operation returns."""
        reply = Reply(HTTPStatus.OK, json.dumps(members).encode(), JSON_TYPE)
        self.inject(KmsFault(reply=reply), operation=operation)

    def delay(self, seconds: float, *, times: int | None = None, operation: str | None = None) -> None:
        """Delay the handling of a request. `clear` ends the delay."""
        self.inject(KmsFault(delay_seconds=seconds), times=times, operation=operation)

    def drip(self, seconds: float, *, times: int | None = None, operation: str | None = None) -> None:
        """Answer byte by byte, with a pause before each."""
        self.inject(KmsFault(drip_seconds=seconds), times=times, operation=operation)

    def cut(self, when: Cut = Cut.BEFORE_THE_ANSWER, *, times: int | None = None, operation: str | None = None) -> None:
        """End the connection."""
        self.inject(KmsFault(cut=when), times=times, operation=operation)

    def down(self) -> None:
        """Refuse connections and end open ones, until `clear`."""
        self._refuse()

    def clear(self) -> None:
        """Remove all faults and the policy, and end delays at once."""
        with self._lock:
            self._armed.clear()
            self.policy = None
            self._cleared.set()
            self._cleared = threading.Event()
        self._listen()

    def take(self, request: KmsRequest) -> KmsFault | None:
        """Return the fault of this request, and count the request. For the gate."""
        with self._lock:
            for armed in self._armed:
                if armed.operation not in {None, request.operation}:
                    continue
                armed.seen += 1
                if armed.seen % armed.every:
                    continue
                if armed.remaining is not None:
                    armed.remaining -= 1
                    if armed.remaining <= 0:
                        self._armed.remove(armed)
                return armed.fault
        return None

    def pause(self, seconds: float) -> None:
        """Wait until the time is over or `clear` is called. For the gate."""
        self._cleared.wait(seconds)
