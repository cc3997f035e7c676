"""The quick start of README.md, pasted into a terminal as a person does."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.process.home import Home, token_vault
from tests.support.process.server import Serve
from tests.support.process.terminal import Terminal
from tests.support.stack.loopback import free_port

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the quick start uses curl")

SECTION = (ROOT / "README.md").read_text().partition("\n## Quick start\n")[2].partition("\n## ")[0]
INSTALL, *PASTED = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)


def _require_the_documented_answers(shown: str) -> None:
    assert re.findall(r"^HTTP/1.1 ([0-9]+)", shown, re.MULTILINE) == ["201", "200", "200", "412"], shown
    stored, revealed, rotated = re.findall(r'^etag: "([0-9]+)"$', shown, re.MULTILINE)
    assert int(stored) == int(revealed) == int(rotated) - 1
    assert shown.count('"access_token":"1234~my-canvas-token"') == 1
    assert '"code":"version_conflict"' in shown


@pytest.mark.parametrize("bracketed", [True, False], ids=["as a block", "as typed lines"])
def test_it_works_if_it_is_pasted_before_the_vault_listens(tmp_path: Path, serve: Serve, bracketed: bool) -> None:
    assert INSTALL == "make run\n"
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    settings = {"PORT": str(free_port())}
    store_and_reveal, rotate = PASTED
    block = (store_and_reveal + 2 * rotate).replace(":8080/", f":{settings['PORT']}/")
    with Terminal(tmp_path, settings) as terminal:
        terminal.paste(block, bracketed=bracketed)
        terminal.wait_for("\nwaiting for the vault\n")
        token_vault("init", folder=tmp_path, settings=settings)  # then, as `make run`
        with serve(Home(tmp_path, "", settings)):
            shown = terminal.printed()
    _require_the_documented_answers(shown)
