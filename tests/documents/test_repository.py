"""What a repository has for those who come to it: licence, CI, hooks of commits."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOOKS: list[dict[str, Any]] = [
    hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
]


def test_the_licence_is_apache_2_everywhere_it_is_named() -> None:
    assert "Apache License\n                           Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Apache License 2.0" in (ROOT / "README.md").read_text()
    for package in ("client", "clients/typescript"):  # each is handed out by itself, and with the licence's text
        assert (ROOT / package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)  # noqa: S506  strings only: `on` stays a word
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    (version,) = (step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {}))
    assert PROJECT["requires-python"] == f">={version}"


@pytest.mark.parametrize("hook", [one for one in HOOKS if one["id"].startswith("ruff")], ids=lambda hook: hook["id"])
def test_a_hook_refuses_a_bad_file_and_takes_a_good_one(hook: dict[str, Any], tmp_path: Path) -> None:
    program, *options = shlex.split(hook["entry"])
    assert program.startswith(".venv/bin/")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    (tmp_path / "__init__.py").touch()
    good.write_text('"""A module."""\n')
    bad.write_text("import os\nx = ( 1 )\n")
    command = [str(Path(sys.executable).with_name(Path(program).name)), *options]
    for file, refused in ((good, False), (bad, True)):
        done = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, check=False)
        assert (done.returncode != 0) is refused, done


def test_the_other_hooks_are_steps_of_make_lint() -> None:
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    steps = re.findall(r"@\$\(BIN\)/(.+)", lint)
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in HOOKS][2:] == steps[2:]
    assert [hook["language"] for hook in HOOKS] == ["system"] * 4, "nothing is downloaded"


def test_make_dev_installs_and_runs_no_test() -> None:
    printed = subprocess.run(["make", "--dry-run", "dev"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pytest" not in printed
    assert "dev: $(VENV)/.dev " in (ROOT / "Makefile").read_text()
