"""The environment of the tests of settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.secret_files import file_fields
from app.config.settings import Settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting in the environment, and no `.env` in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in (*Settings.model_fields, *file_fields(Settings).values()):
        monkeypatch.delenv(name.upper(), raising=False)
