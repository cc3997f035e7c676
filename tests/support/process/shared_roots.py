"""Share the root keys of master keys among the processes that `prepared` forks.

Each process derives the root of its master key with PBKDF2, which takes a fifth of a second of processor time, and a
run of the tests forks a thousand processes under two master keys. PBKDF2 is a pure function, so its results are kept
in a folder until the forking process ends. PulsePlan's keys are derived anew, because tests wait for them.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from app.security.local_strategy import PBKDF2_ITERATIONS

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_derive: Final = hashlib.pbkdf2_hmac
_folder: Final = TemporaryDirectory(prefix="roots-")
atexit.register(_folder.cleanup)  # in the forking process; the forked ones end without it


def _shared(
    hash_name: str, password: ReadableBuffer, salt: ReadableBuffer, iterations: int, dklen: int | None = None
) -> bytes:
    if iterations != PBKDF2_ITERATIONS:
        return _derive(hash_name, password, salt, iterations, dklen)
    name = hashlib.sha256(repr((hash_name, bytes(password), bytes(salt), dklen)).encode()).hexdigest()
    known = Path(_folder.name, name)
    if known.exists():
        return known.read_bytes()
    root = _derive(hash_name, password, salt, iterations, dklen)
    written = known.with_suffix(f".{os.getpid()}")
    written.write_bytes(root)
    written.replace(known)
    return root


hashlib.pbkdf2_hmac = _shared
