# ruff: noqa: INP001  a script outside of any package
"""Pin the images of the Dockerfile and docker-compose.yml by digest: `NAME:TAG` becomes `NAME:TAG@sha256:…`.

Needs Docker with buildx and access to the registries. Run it again to move the pins to the tags' present images, and
review the difference like any other change. Changes no file unless every image was found.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

_FILES: Final = ("Dockerfile", "docker-compose.yml")
# an image of a registry; the vault's own, which is built here, has no digest
_IMAGE: Final = re.compile(
    r"^(?P<before>FROM |    image: )(?P<image>(?!token-vault:)[a-z0-9./-]+:[\w.-]+)(?:@sha256:[0-9a-f]{64})?",
    re.MULTILINE,
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def main(folder: Path) -> None:
    texts = {path: path.read_text() for path in (folder / name for name in _FILES)}
    images = sorted({found["image"] for text in texts.values() for found in _IMAGE.finditer(text)})
    digests = {image: _digest_of(image) for image in images}
    for path, text in texts.items():
        path.write_text(_IMAGE.sub(lambda found: f"{found['before']}{found['image']}@{digests[found['image']]}", text))
    sys.stdout.writelines(f"{image}@{digest}\n" for image, digest in digests.items())


def _digest_of(image: str) -> str:
    """Return the digest of the image's index, which covers every platform."""
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  names of our own files
    except FileNotFoundError:
        sys.exit("docker was not found; no file was changed")
    digest = done.stdout.strip()
    if done.returncode != 0 or not _DIGEST.fullmatch(digest):
        sys.exit(f"{image} was not found: {done.stderr.strip() or digest}; no file was changed")
    return digest


if __name__ == "__main__":
    main(Path(__file__).parents[1])
