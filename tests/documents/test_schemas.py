"""The files for Docker Compose, GitHub and Kubernetes are valid by their published schemas.

The tests import the validators themselves: for an import at the top, each process that runs tests would compile their
grammar of URLs, which takes seconds.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
import yaml

from tests.support.kubernetes import build
from tests.support.paths import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
BASE = build(KUBERNETES / "base")
EXAMPLE = build(KUBERNETES / "overlays" / "example")


@pytest.mark.parametrize(
    ("schema", "file"),
    [("compose-spec", "docker-compose.yml"), ("github-workflows", ".github/workflows/ci.yml")],
)
def test_a_file_is_valid(schema: str, file: str) -> None:
    import jsonschema  # noqa: PLC0415  see above

    read: dict[Any, Any] = yaml.safe_load((ROOT / file).read_text())
    document = {"on" if key is True else key: value for key, value in read.items()}
    folder = files("check_jsonschema") / "builtin_schemas" / "vendor"
    jsonschema.validate(document, json.loads((folder / f"{schema}.json").read_text()))


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_manifest_is_valid(version: str) -> None:
    import kubernetes_validate  # noqa: PLC0415  see above

    checked = [one for one in (*BASE, *EXAMPLE) if one["kind"] != "ServiceMonitor"]
    assert len(checked) == 2 * 11 + 1
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_an_invalid_manifest_is_noticed() -> None:
    import kubernetes_validate  # noqa: PLC0415  see above

    service = next(one for one in BASE if one["kind"] == "Service")
    broken = {**service, "spec": {"ports": [{"prot": 80}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)
