"""What can go wrong between a client and PostgREST, switched on and off by a test."""

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass

_ERROR_PAGE = b"<!DOCTYPE html><html><body><h1>Something went wrong</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the gateway saw it; `target` is the path and the query."""

    method: str
    target: str


Predicate = Callable[[Request], bool]


def every_request(_: Request) -> bool:
    """Match everything."""
    return True


def writes(request: Request) -> bool:
    """Match what may change a row. A function call is a POST too, but ours only reads."""
    is_write = request.method in {"POST", "PUT", "PATCH", "DELETE"}
    return is_write and not request.target.startswith("/rest/v1/rpc/")


def reads(request: Request) -> bool:
    """Match what `writes` does not."""
    return not writes(request)


class Cut(enum.Enum):
    """When the client's connection ends without an answer."""

    BEFORE_PASSING_ON = enum.auto()
    # PostgREST has committed; its answer is lost
    AFTER_THE_ANSWER = enum.auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that the gateway makes up instead of asking PostgREST."""

    status: int
    body: bytes = _ERROR_PAGE
    content_type: str = "text/html; charset=utf-8"
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request. The parts add up: a late answer can also be cut."""

    delay_before_seconds: float = 0.0
    delay_after_seconds: float = 0.0
    reply: Reply | None = None
    cut: Cut | None = None
    # whether a cut is a reset (RST) or an orderly close (FIN): clients tell them apart
    resets: bool = False


@dataclass(slots=True)
class _Armed:
    fault: Fault
    when: Predicate
    remaining: int | None


class Faults:
    """The faults of one gateway; usable from every thread.

    `times` is for how many requests a fault stays, by default until `clear`. `when`
    chooses the requests. A request meets one fault: the one injected first.
    """

    def __init__(self, *, listen: Callable[[bool], None]) -> None:
        """`listen` makes the gateway accept connections, or refuse them."""
        self._listen = listen
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._epoch = 0

    def inject(self, fault: Fault, *, times: int | None = None, when: Predicate = every_request) -> None:
        """Let this happen to the requests to come."""
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
        """Wait, in seconds, before passing a request on, or before passing its answer back.

        A request that is held back is passed on in the end even if its client has left,
        as a packet in some queue would be.
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
        """Answer with this status, and an HTML page unless told otherwise.

        The status 200 makes the page that some proxies show for a failure.
        """
        reply = Reply(status=status, body=body, content_type=content_type)
        self.inject(Fault(reply=reply), times=times, when=when)

    def redirect(self, location: str, *, times: int | None = None, when: Predicate = every_request) -> None:
        """Send clients to another place with a 307, which asks to repeat method and body."""
        reply = Reply(status=307, body=b"", location=location)
        self.inject(Fault(reply=reply), times=times, when=when)

    def cut_before(
        self,
        *,
        resets: bool = False,
        times: int | None = None,
        when: Predicate = every_request,
    ) -> None:
        """End the connection; PostgREST never hears of the request."""
        fault = Fault(cut=Cut.BEFORE_PASSING_ON, resets=resets)
        self.inject(fault, times=times, when=when)

    def cut_after_commit(
        self,
        *,
        resets: bool = False,
        times: int | None = None,
        when: Predicate = every_request,
    ) -> None:
        """End the connection once PostgREST has answered, so once it has committed."""
        fault = Fault(cut=Cut.AFTER_THE_ANSWER, resets=resets)
        self.inject(fault, times=times, when=when)

    def down(self) -> None:
        """Refuse connections and reset those that are open, until `clear`."""
        self._listen(False)  # noqa: FBT003 - the callback's only argument

    def clear(self) -> None:
        """Back to normal. Requests that are being delayed stay delayed, and arrive."""
        with self._lock:
            self._armed.clear()
        self._listen(True)  # noqa: FBT003 - as above

    def reset(self) -> None:
        """Back to normal, and forget the requests that are still held back.

        Between two tests: what one of them left behind must not write into the next.
        """
        with self._lock:
            self._epoch += 1
        self.clear()

    @property
    def epoch(self) -> int:
        """Changes with `reset`: a request from an earlier epoch is not passed on."""
        return self._epoch

    def take(self, request: Request) -> Fault | None:
        """What happens to this request; counts it. For the gateway."""
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
