"""Faults between a client and PostgREST, which tests switch on and off."""

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass

_ERROR_PAGE = b"<!DOCTYPE html><html><body><h1>Something went wrong</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the gateway received it; `target` is the path and the query."""

    method: str
    target: str


Predicate = Callable[[Request], bool]


def every_request(_: Request) -> bool:
    return True


def writes(request: Request) -> bool:
    """Match requests that may change a row. A call of a database function is a POST too, and is counted as a read."""
    is_write = request.method in {"POST", "PUT", "PATCH", "DELETE"}
    return is_write and not request.target.startswith("/rest/v1/rpc/")


def reads(request: Request) -> bool:
    """Match requests that `writes` does not match."""
    return not writes(request)


class Cut(enum.Enum):
    """The moment at which the client's connection ends without an answer."""

    BEFORE_PASSING_ON = enum.auto()
    # after PostgREST has committed
    AFTER_THE_ANSWER = enum.auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that the gateway gives without asking PostgREST."""

    status: int
    body: bytes = _ERROR_PAGE
    content_type: str = "text/html; charset=utf-8"
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """The treatment of one request. The parts combine: a delayed answer can also be cut."""

    delay_before_seconds: float = 0.0
    delay_after_seconds: float = 0.0
    reply: Reply | None = None
    cut: Cut | None = None
    # cut by a reset (RST) instead of an orderly close (FIN); clients report them differently
    resets: bool = False


@dataclass(slots=True)
class _Armed:
    fault: Fault
    when: Predicate
    remaining: int | None


class Faults:
    """The faults of one gateway. Thread-safe.

    `times` is the number of requests that a fault applies to; by default it stays until `clear`. `when` chooses the
    requests. Only one fault applies to a request: the first one injected that matches.
    """

    def __init__(self, *, listen: Callable[[bool], None]) -> None:
        """`listen` makes the gateway accept connections, or refuse them."""
        self._listen = listen
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._epoch = 0

    def inject(self, fault: Fault, *, times: int | None = None, when: Predicate = every_request) -> None:
        """Apply this fault to the requests to come."""
        with self._lock:
            self._armed.append(_Armed(fault=fault, when=when, remaining=times))

    def delay(
        self,
        *,
        before: float = 0.0,
        after: float = 0.0,
        times: int | None = None,
        when: Predicate = every_request,
    ) -> None:
        """Wait this many seconds before passing a request on, or before passing its answer back.

        A delayed request is passed on even if its client has disconnected, like a packet in a queue.
        """
        fault = Fault(delay_before_seconds=before, delay_after_seconds=after)
        self.inject(fault, times=times, when=when)

    def answer(
        self,
        status: int,
        *,
        body: bytes = _ERROR_PAGE,
        content_type: str = "text/html; charset=utf-8",
        times: int | None = None,
        when: Predicate = every_request,
    ) -> None:
        """Answer with this status and body, by default an HTML page.

        Status 200 gives the page that some proxies show instead of an error.
        """
        reply = Reply(status=status, body=body, content_type=content_type)
        self.inject(Fault(reply=reply), times=times, when=when)

    def redirect(self, location: str, *, times: int | None = None, when: Predicate = every_request) -> None:
        """Redirect with 307, which asks the client to repeat the method and the body."""
        reply = Reply(status=307, body=b"", location=location)
        self.inject(Fault(reply=reply), times=times, when=when)

    def cut_before(
        self,
        *,
        resets: bool = False,
        times: int | None = None,
        when: Predicate = every_request,
    ) -> None:
        """End the connection without passing the request on."""
        fault = Fault(cut=Cut.BEFORE_PASSING_ON, resets=resets)
        self.inject(fault, times=times, when=when)

    def cut_after_commit(
        self,
        *,
        resets: bool = False,
        times: int | None = None,
        when: Predicate = every_request,
    ) -> None:
        """End the connection after PostgREST has answered, and so has committed."""
        fault = Fault(cut=Cut.AFTER_THE_ANSWER, resets=resets)
        self.inject(fault, times=times, when=when)

    def down(self) -> None:
        """Refuse new connections and reset open ones, until `clear`."""
        self._listen(False)  # noqa: FBT003  the callback's only argument

    def clear(self) -> None:
        """Remove all faults. Requests that are being delayed still arrive."""
        with self._lock:
            self._armed.clear()
        self._listen(True)  # noqa: FBT003  the same

    def reset(self) -> None:
        """Remove all faults and drop the requests that are being delayed, so they cannot write in the next test."""
        with self._lock:
            self._epoch += 1
        self.clear()

    @property
    def epoch(self) -> int:
        """The number of resets so far: a request delayed since an earlier epoch is dropped."""
        return self._epoch

    def take(self, request: Request) -> Fault | None:
        """Return the fault that applies to this request, and count its use. Called by the gateway."""
        if not self._armed:
            return None
        with self._lock:
            for armed in self._armed:
                if not armed.when(request):
                    continue
                if armed.remaining is not None:
                    armed.remaining -= 1
                    if armed.remaining <= 0:
                        self._armed.remove(armed)
                return armed.fault
        return None
