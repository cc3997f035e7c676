"""Folders of the repository."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
VECTORS: Final = ROOT / "tests" / "vectors"
STACK: Final = ROOT / ".stack"  # what the test stack installs; not committed
