"""The wheel and the source distribution, installed into an environment of their own and started."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.process.home import initialised_home, run
from tests.support.process.server import Serve

_BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
_SOURCES = ("app", "migrations", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md",
            "requirements.lock")  # fmt: skip
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True, slots=True)
class Distributions:
    """A wheel, a source distribution, and a wheel that was built from the latter."""

    wheel: Path
    source: Path
    wheel_of_source: Path


def _build(hook: str, source: Path, target: Path) -> Path:
    done = run(sys.executable, "-c", _BUILD, hook, str(target), folder=source)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    folder = tmp_path_factory.mktemp("distributions")
    for name in ("source", "wheel", "sdist", "wheel_of_source"):
        (folder / name).mkdir()
    for name in _SOURCES:  # a build writes into its folder
        subprocess.run(["cp", "--archive", str(ROOT / name), str(folder / "source")], check=True)
    wheel = _build("build_wheel", folder / "source", folder / "wheel")
    source = _build("build_sdist", folder / "source", folder / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Distributions(wheel, source, _build("build_wheel", unpacked, folder / "wheel_of_source"))


def _files(wheel: Path) -> dict[str, int]:
    """Return the checksum of each file but the list of files itself."""
    with zipfile.ZipFile(wheel) as files:
        return {one.filename: one.CRC for one in files.infolist() if not one.filename.endswith("RECORD")}


def test_a_wheel_has_every_file_of_the_app_and_the_licence(distributions: Distributions) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "app").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"app/migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")}
    metadata = f"pulseplan_token_vault-{PROJECT['version']}.dist-info"
    expected |= {
        f"{metadata}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
    }
    assert _files(distributions.wheel).keys() == expected


def test_the_source_distribution_builds_the_same_wheel(distributions: Distributions) -> None:
    assert _files(distributions.wheel_of_source) == _files(distributions.wheel)
    with tarfile.open(distributions.source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "requirements.lock", "app/migrations/0001_create_oauth_tokens.sql"} <= names


@pytest.fixture(scope="module")
def installed(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the wheel into an empty environment; what it depends on comes from the tests' own environment."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check",
         "--no-index", "--no-deps", "--no-compile", str(distributions.wheel_of_source)],
        check=True,
    )  # fmt: skip
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    yield folder / "venv" / "bin"
    shutil.rmtree(folder)


def test_the_installed_program_is_the_packages_own(installed: Path, tmp_path: Path) -> None:
    done = run(str(installed / "token-vault"), "--version", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"token-vault, version {PROJECT['version']}\n")
    found = run(str(installed / "python"), "-c", "import app; print(app.__file__)", folder=tmp_path)
    assert Path(found.stdout.strip()).is_relative_to(installed.parent)


def test_the_installed_vault_starts_and_answers(installed: Path, tmp_path: Path, serve: Serve) -> None:
    home = initialised_home(tmp_path)
    # the words after `sh` are those of the tests' own program
    started_as = ("sh", "-c", f'shift; exec {installed / "token-vault"} "$@"', "sh")
    with serve(home, prefix=started_as) as server, server.client() as client:
        assert client.get("/readyz").status_code == 200
        stored = client.put("/v1/users/cd613e30-d8f1-4adf-91b7-584a2265b1f5/tokens/canvas", json={"access_token": "a"})
        assert stored.status_code == 201, json.dumps(stored.json())
