"""pyproject.toml has the version; everything else that names it says the same."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version

import pytest

from tests.support.paths import ROOT

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# where the version stands: each match of the pattern, and at least one
PLACES = {
    "client/pyproject.toml": r'^version = "(.+)"$',
    "clients/typescript/package.json": r'^  "version": "(.+)",$',
    "clients/typescript/package-lock.json": r'"name": "@pulseplan/token-vault-client",\n +"version": "(.+)",$',
    "docs/openapi.json": r'^    "version": "(.+)"$',
    "docs/upgrading.md": r"\A(?:.*\n)*?## To (.+)$",
    "CHANGELOG.md": r"\A(?:.*\n)*?## \[([0-9].*?)\]",
    "Dockerfile": r'image\.version="(.+?)"',
    "deploy/kubernetes/overlays/example/kustomization.yaml": r"^    newTag: (.+)$",
}
IMAGE = re.compile(r"\btoken-vault:([0-9][\w.-]*)")
FOLDERS_WITH_IMAGES = ("deploy", "docs")


@pytest.mark.parametrize("place", PLACES)
def test_the_version_is_the_same_everywhere(place: str) -> None:
    found = set(re.findall(PLACES[place], (ROOT / place).read_text(), re.MULTILINE))
    assert found == {VERSION}


def test_every_image_of_the_vault_that_is_named_has_the_version() -> None:
    files = [ROOT / "Dockerfile", ROOT / "docker-compose.yml"]
    files += [path for folder in FOLDERS_WITH_IMAGES for path in sorted((ROOT / folder).rglob("*.[my]*"))]
    named = {path: set(IMAGE.findall(path.read_text())) for path in files if path.is_file()}
    assert sum(map(bool, named.values())) >= 6
    assert {path: tags for path, tags in named.items() if tags - {VERSION}} == {}


def test_the_installed_package_is_of_this_version() -> None:
    assert version("pulseplan-token-vault") == VERSION, "install it again: make dev"
