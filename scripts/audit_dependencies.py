"""Look for known vulnerabilities of the locked packages with pip-audit: `make audit`.

Asks PyPI, and OSV if PyPI does not answer. Exit codes: 0 none is known, 1 some are, 2 nothing was checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_LOCK: Final = Path(__file__).parents[1] / "requirements.lock"
_SOURCES: Final = ("pypi", "osv")
_SECONDS: Final = 300


def main() -> None:
    for source in _SOURCES:
        packages, problem = _audited(source)
        if packages is not None:
            sys.exit(_report(source, packages))
        print(f"{source}: {problem}", file=sys.stderr)  # noqa: T201  the output of a script
    print("Nothing was checked: no data about vulnerabilities can be reached from this machine.", file=sys.stderr)  # noqa: T201  see above
    sys.exit(2)


def _audited(source: str) -> tuple[list[dict[str, Any]] | None, str]:
    """Return what pip-audit says of each package, or `None` and the last line of its error."""
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(_LOCK), "--require-hashes", "--disable-pip"),
        *("--vulnerability-service", source, "--format", "json", "--progress-spinner", "off", "--timeout", "15"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)  # noqa: S603  constants
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_SECONDS} seconds"
    except (ValueError, KeyError, TypeError):
        return None, (done.stderr.strip().splitlines() or ["no output"])[-1]
    if all("skip_reason" in one for one in packages):  # a mirror that has the packages, but no data about them
        return None, f"knows none of the {len(packages)} packages"
    return packages, ""


def _report(source: str, packages: list[dict[str, Any]]) -> int:
    """Print each vulnerability and what could not be checked; return the exit code."""
    skipped = [f"{one['name']}: not checked: {one['skip_reason']}" for one in packages if "skip_reason" in one]
    found = [
        f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'none'}"
        for one in packages
        for known in one.get("vulns", ())
    ]
    for line in (*found, *skipped):
        print(line)  # noqa: T201  the output of a script
    checked = len(packages) - len(skipped)
    print(f"{source}: {checked} packages checked, {len(found)} known vulnerabilities")  # noqa: T201  see above
    return 1 if found else 2 if skipped else 0


if __name__ == "__main__":
    main()
