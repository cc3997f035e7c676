"""Four processes keep 100 000 events side by side, while their files fill up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.audit.trails import files, members, mode, verified

PROCESSES = 4
EVENTS = 25_000
MAXIMUM_BYTES = 2 * 1024 * 1024

WRITE = """
import asyncio, sys
from pathlib import Path
from tests.support.audit.trails import an_event, append_all, opened_trail

async def main(folder, first, count, maximum_bytes):
    async with opened_trail(folder, maximum_bytes=maximum_bytes) as trail:
        await append_all(trail, [an_event(first + number) for number in range(count)], together=100)

asyncio.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
"""


def test_100_000_events_of_four_processes_verify_across_their_files(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITE, tmp_path, str(number * EVENTS), str(EVENTS), str(MAXIMUM_BYTES)])
        for number in range(PROCESSES)
    ]
    assert [process.wait(60) for process in processes] == [0] * PROCESSES
    written = files(tmp_path)
    report = verified(written)
    assert (report.findings, report.chains, report.events) == ([], PROCESSES, PROCESSES * EVENTS)
    assert len(written) >= PROCESSES * 5
    assert max(path.stat().st_size for path in written) <= MAXIMUM_BYTES
    assert {mode(path) for path in written} == {0o600}
    # one line of the hundred thousand is enough
    middle = written[len(written) // 2]
    content = middle.read_bytes()
    lines = content.splitlines(keepends=True)
    middle.write_bytes(b"".join(lines[: len(lines) // 2] + lines[len(lines) // 2 + 1 :]))
    [finding] = verified(written).findings
    assert (finding.problem, finding.place.file, finding.place.line) == ("missing", middle, len(lines) // 2 + 1)
    assert len({event["user_id"] for event in members(written)}) == PROCESSES * EVENTS - 1
