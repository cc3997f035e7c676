"""Latency of other callers during an attack by slow-loris clients, bodies of 100 MB and a flood of old tokens."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from app.callers.service_key_file import add_key
from app.callers.service_keys import Scope, ServiceKey, generate_key, hash_key
from benchmarks.attackers import prepare
from benchmarks.bench import Bench
from benchmarks.load import Load
from benchmarks.requests import new_user_ids
from benchmarks.rounds import median_rate, percentile
from benchmarks.servers import resident_bytes, stop
from benchmarks.table import Line, Target
from tests.support.stack.loopback import accepted, ports_towards, workers_below
from tests.support.stack.reaper import Reaper

_TOKENS = 500
_WARM_UP_SECONDS = 2.0
_SPREAD_SECONDS = 60.0
_MEGABYTE = 1_000_000


def measure(bench: Bench) -> list[Line]:
    """Attack a vault with one worker, then with two; each worker gets a slow-loris client and a flood."""
    key = generate_key()  # another service than the other callers, so it has its own limits
    service_keys = bench.folder / "service-keys.json"
    add_key(service_keys, ServiceKey(service="attackers", sha256=hash_key(key), scopes=frozenset(Scope)))
    return [line for workers in (1, 2) for line in _measure(bench, key, workers)]


def _measure(bench: Bench, key: str, workers: int) -> list[Line]:
    user_ids = new_user_ids(_TOKENS)
    name = f"attack-{workers}"
    users = bench.folder / f"{name}-users"
    # the attackers' tokens are not rewrapped, so each read of one derives a key
    with bench.servers.vault(name, {"REWRAP_ON_READ": "false"}, workers=workers) as vault:
        bench.stored(vault, user_ids)
        prepare(bench.folder / name / "data" / "vault.db", key, users)
        others = bench.over_and_over(vault, tuple(bench.requests.reveal(user_id) for user_id in user_ids))
        others()
        quiet = [others() for _ in range(bench.turns)]
        attacked: list[Load] = []
        held: list[int | None] = []
        with attacked_by(bench.reaper, vault.port, users, workers=workers) as loris:
            time.sleep(_WARM_UP_SECONDS)
            for _ in range(bench.turns):
                held.append(fewest_held(vault.pid, vault.port, loris))
                attacked.append(others())
            held.append(fewest_held(vault.pid, vault.port, loris))
            memory = max(map(resident_bytes, workers_below(vault.pid)))
    known = [fewest for fewest in held if fewest is not None]
    return _lines(f"{workers} worker{'s' if workers > 1 else ''}", quiet, attacked, known, memory)


def _lines(what: str, quiet: list[Load], attacked: list[Load], held: list[int], memory: int) -> list[Line]:
    calm, hurt = percentile(quiet, 99), percentile(attacked, 99)
    rate = median_rate(attacked)
    at_most = Target(at_most=3, of_ratio=True)
    lines = [
        Line(f"reveal, SQLite, p99, quiet, {what}", calm * 1_000, "ms"),
        Line(f"reveal, SQLite, p99, under attack, {what}", hurt * 1_000, "ms", hurt / calm, "quiet", at_most),
        Line(f"reveal, SQLite, under attack, {what}", rate, "requests/s", rate / median_rate(quiet), "quiet"),
        Line(f"resident memory of a worker under attack, {what}", memory / _MEGABYTE, "MB", target=Target(at_most=200)),
    ]
    if held:
        fewest = Target(at_least=1)
        lines.append(Line(f"slow-loris connections of each worker at least, {what}", min(held), "", target=fewest))
    return lines


@contextmanager
def attacked_by(reaper: Reaper, port: int, users: Path, *, workers: int) -> Iterator[list[int]]:
    """Attack inside of the block; yield the process ids of the slow-loris clients, one for each worker.

    Raises `RuntimeError` if an attacker has ended before.
    """
    flood = ["benchmarks.attackers", str(port), str(users), str(workers)]
    with ExitStack() as stack:
        attackers = [
            stack.enter_context(_running(reaper, *arguments))
            for arguments in (*(["benchmarks.loris", str(port)] for _ in range(workers)), flood)
        ]
        yield [process.pid for process in attackers[:workers]]
        if any(process.poll() is not None for process in attackers):
            raise RuntimeError("an attacker has ended before it was stopped")


@contextmanager
def _running(reaper: Reaper, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", *arguments])
    reaper.watch(process.pid, signal.SIGTERM)
    try:
        yield process
    finally:
        stop(process)
        reaper.forget(process.pid)


def fewest_held(vault: int, port: int, loris: list[int]) -> int | None:
    """Wait until each worker holds a slow-loris connection; return how many the one with the fewest has.

    The kernel chooses which worker accepts a connection. Only root can see which worker has it; for other users the
    result is `None`.
    """
    deadline = time.monotonic() + _SPREAD_SECONDS
    while True:
        try:
            owners = accepted(vault, port)
        except PermissionError:
            return None
        slow = frozenset().union(*(ports_towards(client, port) for client in loris))
        held = Counter(worker for client_port, worker in owners.items() if client_port in slow)
        fewest = min(held[worker] for worker in workers_below(vault))
        if fewest:
            return fewest
        if time.monotonic() > deadline:
            raise RuntimeError("a worker holds no slow-loris connection")
        time.sleep(0.1)
