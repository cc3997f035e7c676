"""A load balancer as a process of its own, which treats connections as a Kubernetes Service does.

It asks each replica's `/readyz` again and again, and gives a new connection to any replica that was ready last. It
looks at no byte of a connection, never moves an open one, and tries no other replica if one refuses.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT
from tests.support.process.home import Home
from tests.support.stack.loopback import LOOPBACK
from tests.support.stack.reaper import Reaper

CHECKS_PER_SECOND: Final = 10
_CHECK: Final = b"GET /readyz HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n\r\n"
_CHECK_SECONDS: Final = 5.0
_CHUNK: Final = 65536


@dataclass(frozen=True, slots=True)
class Balancer:
    """A running balancer; `home` has its port and the service key of the replicas."""

    home: Home
    log: Path

    @property
    def port(self) -> int:
        return int(self.home.settings["PORT"])

    @property
    def ready(self) -> set[int]:
        """The ports of the replicas that get new connections."""
        *_, last = self.log.read_text().split("\n")[:-1] or [""]
        return set(map(int, last.split()))


@contextmanager
def balancing(home: Home, replicas: Sequence[int], *, reaper: Reaper) -> Iterator[Balancer]:
    """Run a balancer on the home's port before the replicas on these ports."""
    log = home.folder / "balancer.log"
    command = [sys.executable, "-m", __name__, home.settings["PORT"], *map(str, replicas)]
    with log.open("wb") as output, subprocess.Popen(command, cwd=ROOT, stdout=output) as process:
        reaper.watch(process.pid, signal.SIGTERM)
        try:
            yield Balancer(home, log)
        finally:
            process.terminate()
            process.wait()
            reaper.forget(process.pid)


async def _balance(port: int, replicas: Sequence[int]) -> None:
    ready: set[int] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            theirs = await asyncio.open_connection(LOOPBACK, random.choice(sorted(ready)))  # noqa: S311  no secret
        except (OSError, IndexError):
            writer.close()
            return
        await asyncio.gather(_copy(reader, theirs[1]), _copy(theirs[0], writer))

    async with await asyncio.start_server(connected, LOOPBACK, port):
        await asyncio.gather(*(_check(replica, ready) for replica in replicas))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def _check(replica: int, ready: set[int]) -> None:
    while True:
        before = set(ready)
        (ready.add if await _is_ready(replica) else ready.discard)(replica)
        if ready != before:
            print(*sorted(ready), flush=True)  # noqa: T201  read by `Balancer.ready`
        await asyncio.sleep(1 / CHECKS_PER_SECOND)


async def _is_ready(replica: int) -> bool:
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            reader, writer = await asyncio.open_connection(LOOPBACK, replica)
            writer.write(_CHECK)
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"HTTP/1.1 200 ")


if __name__ == "__main__":
    asyncio.run(_balance(int(sys.argv[1]), [int(one) for one in sys.argv[2:]]))
