"""The secrets of a run in files, as a container mounts them, and files that are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from app.config.secret_files import MAXIMUM_FILE_BYTES, file_fields
from app.config.settings import Settings


def in_files(settings: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Write each secret of these settings to a file, and return settings that name the files."""
    moved = dict(settings)
    for field, file_field in file_fields(Settings).items():
        name = field.upper()
        if name in settings:
            file = folder / field
            file.write_text(settings[name] + "\n")
            file.chmod(0o600)
            moved |= {name: "", file_field.upper(): str(file)}  # an empty variable is not set
    return moved


def with_wrong_files(settings: Mapping[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """Yield settings whose file of the master key is wrong, in each way that may show the secret."""
    key = Path(settings["TOKEN_ENCRYPTION_KEY_FILE"]).read_text().strip()
    wrong = {
        "zero": f"{key}\0{key}".encode(),
        "binary": key.encode() + b"\xff",
        "large": key.encode() * (MAXIMUM_FILE_BYTES // len(key) + 1),
        "short": key[:13].encode(),
    }
    for name, content in wrong.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
        yield {**settings, "TOKEN_ENCRYPTION_KEY_FILE": str(folder / name)}
    yield {**settings, "TOKEN_ENCRYPTION_KEY_FILE": key}
    yield {**settings, "TOKEN_ENCRYPTION_KEY": key}
