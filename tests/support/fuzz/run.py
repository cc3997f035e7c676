"""One run of the schemathesis command."""

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
    """Check up to `examples` requests per operation and phase; the exit code is 0 if nothing is found.

    Raises `subprocess.TimeoutExpired` after `seconds`.
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
