"""Two floods at once, until stopped: `python -m benchmarks.attackers PORT FILE WORKERS`.

For each worker of the vault two callers send bodies of 100 MB, and 160 reveal old PulsePlan tokens without a
pause, each of a different user. The first line of FILE is the service key; the others are user ids.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import apsw

from benchmarks.load import LOOPBACK
from benchmarks.requests import Requests, new_user_ids

_GIANTS, _READERS = 2, 160  # more readers than derivations may wait
_GIANT_BYTES = 100_000_000
_USERS = 4_000  # more than keys are cached, so that each read derives one
_NOW = "2026-01-01T00:00:00+00:00"


def prepare(database: Path, service_key: str, file: Path) -> None:
    """Store old tokens that do not decrypt, which takes as long as decrypting, and write FILE."""
    users = new_user_ids(_USERS)
    junk = f"v1:{'00' * 16}:{'00' * 16}:{'00' * 40}"
    with apsw.Connection(str(database)) as connection:
        connection.set_busy_timeout(5_000)
        connection.executemany(
            "INSERT INTO oauth_tokens (id, user_id, provider, access_token, is_active, metadata, last_refreshed) "
            "VALUES (?, ?, 'canvas', ?, 1, '{\"status\": \"ok\"}', ?)",
            [(user, user, junk, _NOW) for user in users],
        )
    file.write_text("\n".join([service_key, *users]))


async def _giant(port: int, requests: Requests, user_id: str) -> None:
    head = requests.store(user_id).partition(b"Content-Length")[0]
    piece = b"b" * 65_536
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(head + b"Content-Length: %d\r\n\r\n" % _GIANT_BYTES)
            for _ in range(_GIANT_BYTES // len(piece)):
                writer.write(piece)
                await writer.drain()
        await asyncio.sleep(0.01)


async def _reader(port: int, requests: Requests, users: Iterator[str]) -> None:
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            while True:
                writer.write(requests.reveal(next(users)))
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        await asyncio.sleep(0.1)


async def _attack(port: int, key: str, users: list[str], workers: int) -> None:
    requests, user_cycle = Requests(key), itertools.cycle(users)
    await asyncio.gather(
        *(_giant(port, requests, users[number]) for number in range(_GIANTS * workers)),
        *(_reader(port, requests, user_cycle) for _ in range(_READERS * workers)),
    )


if __name__ == "__main__":
    service_key, *user_ids = Path(sys.argv[2]).read_text().splitlines()
    asyncio.run(_attack(int(sys.argv[1]), service_key, user_ids, int(sys.argv[3])))
