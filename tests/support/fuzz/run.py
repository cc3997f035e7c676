"""One run of schemathesis, as its command line does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.api.service import Service
from tests.support.paths import ROOT
from tests.support.process.home import environment

_HERE: Final = Path(__file__).parent
_PROGRAM: Final = Path(sys.executable).with_name("schemathesis")


def fuzz(service: Service, *, examples: int, seconds: int, seed: int | None = None) -> subprocess.CompletedProcess[str]:
    """Check up to `examples` requests for each operation in each phase; 0 is the exit code of a run that found nothing.

    The run is ended after so many `seconds`, which is an exception and no result.
    """
    command = [
        *(str(_PROGRAM), "--no-color", "--config-file", str(_HERE / "schemathesis.toml")),
        *("run", f"{service.url}/openapi.json", "--checks", "all"),
        *("--header", f"Authorization: Bearer {service.keys['full']}"),
        *("--max-examples", str(examples)),
        *(() if seed is None else ("--seed", str(seed))),
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment({"SCHEMATHESIS_HOOKS": "tests.support.fuzz.hooks", "PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
