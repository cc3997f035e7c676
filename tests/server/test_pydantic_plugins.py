"""Plugins of pydantic, which would get every value that is validated."""

from __future__ import annotations

from pathlib import Path

from tests.support.process.home import AS_USERS_HAVE_IT, new_home
from tests.support.process.server import Serve

PLUGIN = """
import os, pathlib

class Plugin:
    def new_schema_validator(self, *_arguments):
        pathlib.Path(FOLDER, str(os.getpid())).touch()
        return None, None, None

plugin = Plugin()
"""


def test_no_process_of_the_service_loads_a_pydantic_plugin(tmp_path: Path, serve: Serve) -> None:
    loaded, packages = tmp_path / "loaded", tmp_path / "packages"
    metadata = packages / "listener-1.0.dist-info"
    metadata.mkdir(parents=True)
    loaded.mkdir()
    (packages / "listener.py").write_text(PLUGIN.replace("FOLDER", repr(str(loaded))))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: listener\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[pydantic]\nlistener = listener:plugin\n")

    home = new_home(tmp_path, PYTHONPATH=f"{packages}:{AS_USERS_HAVE_IT['PYTHONPATH']}")
    with serve(home, workers=2, installed=True):
        assert list(loaded.iterdir()) == []
