"""Lock files, the check for known vulnerabilities, and the software bill of materials."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.stack.loopback import LOOPBACK, free_port

LOCKS = {name: (ROOT / name).read_text() for name in ("requirements.lock", "requirements-dev.lock")}
ENTRY = re.compile(r"^([a-z0-9-]+)==([^ ]+)([^\n]*\n(?:    --hash=[^\n]*\n)*)", re.MULTILINE)


def _locked(lock: str) -> dict[str, tuple[str, set[str]]]:
    """Return version and hashes by name of package."""
    return {
        name: (version, set(re.findall(r"sha256:([0-9a-f]{64})", rest))) for name, version, rest in ENTRY.findall(lock)
    }


def test_the_lock_files_have_a_hash_for_every_package() -> None:
    for lock in LOCKS.values():
        names = re.findall(r"^([a-z0-9][^ =]*)", lock, re.MULTILINE)
        assert len(names) > 50
        assert [name for name, (_, hashes) in _locked(lock).items() if not hashes] == []
        assert set(names) == _locked(lock).keys(), "each has an exact version"


def test_an_audit_without_data_is_not_a_good_one() -> None:
    nowhere = f"http://{LOOPBACK}:{free_port()}"
    proxies = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), nowhere)
    done = subprocess.run(
        [sys.executable, "scripts/audit_dependencies.py"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **proxies},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    *reasons, last = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in reasons] == ["pypi", "osv"]
    assert last.startswith("Nothing was checked")


def test_the_sbom_lists_every_locked_package_with_its_hashes(tmp_path: Path) -> None:
    [recipe] = re.findall(r"^sbom:[^\n]*\n((?:\t[^\n]*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = recipe.replace("\\\n", " ").splitlines()[0].strip().removeprefix("@")
    file = tmp_path / "sbom.cdx.json"
    subprocess.run(
        command.replace("$(BIN)/python", sys.executable).replace("$(SBOM)", str(file)).split(), cwd=ROOT, check=True
    )
    bom = json.loads(file.read_text())
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", "pulseplan-token-vault")
    listed = {
        one["name"]: (one["version"], {found["content"] for found in one["externalReferences"][0]["hashes"]})
        for one in bom["components"]
    }
    assert listed == _locked(LOCKS["requirements.lock"])
