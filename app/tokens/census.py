"""The census: rows counted by encryption scheme, and the keys that they need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from app.security.schemes import is_written

_LOCAL = re.compile(r"(?:pulseplan-)?local:v([1-9][0-9]*)")
_KNOWN = re.compile(rf"{_LOCAL.pattern}|kms|kms:.+", re.DOTALL)
_PULSEPLAN_LOCAL = "pulseplan-local:"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True)
class CensusRow:
    """`rows` rows with this scheme. If they have none, `materials` names the formats of their ciphertexts.

    Names are those of `app.security.formats.material_of`; a row with a refresh token may have two. In a verified census
    `materials` are the schemes of the ciphertexts, also of rows that have a scheme.
    """

    scheme: str | None
    materials: tuple[str, ...]
    rows: int

    @property
    def needs(self) -> tuple[str, ...]:
        """The schemes or materials that must stay readable for these rows."""
        return self.materials or (() if self.scheme is None else (self.scheme,))

    @property
    def disagrees(self) -> bool:
        """Whether a ciphertext has another scheme than the row names. Such a row is refused with `integrity`."""
        return self.scheme is not None and any(material != self.scheme for material in self.materials)

    @property
    def is_unknown(self) -> bool:
        """Whether the row names a scheme that the vault does not write, or a ciphertext has no known format."""
        if self.scheme is not None and not is_written(self.scheme):
            return True
        return not self.needs or not all(map(_KNOWN.fullmatch, self.needs))

    @property
    def is_legacy(self) -> bool:
        """Whether a secret of the rows is in a format of PulsePlan's, which only rows without a scheme may have."""
        return self.scheme is None and any(need.startswith(_PULSEPLAN_LOCAL) for need in self.materials)


@dataclass(frozen=True, slots=True)
class Census:
    """The counted rows, and the scheme of the primary, `None` if it is unknown."""

    primary_scheme: str | None
    lines: tuple[CensusRow, ...]

    @classmethod
    def of(cls, lines: Iterable[CensusRow], *, primary_scheme: str | None) -> Census:
        return cls(primary_scheme, tuple(sorted(lines, key=lambda line: (line.scheme or "", line.materials))))

    @property
    def rows(self) -> int:
        return sum(line.rows for line in self.lines)

    @property
    def due(self) -> int | None:
        """Rows that are not under the primary scheme; a sweep rewraps them. `None` if that scheme is unknown."""
        if self.primary_scheme is None:
            return None
        return sum(line.rows for line in self.lines if line.scheme != self.primary_scheme)

    @property
    def strange(self) -> int:
        """Rows with a scheme that the vault does not write. A sweep counts them as unreadable and reads none."""
        return sum(line.rows for line in self.lines if line.scheme is not None and not is_written(line.scheme))

    @property
    def due_schemes(self) -> list[str | None]:
        return list(dict.fromkeys(line.scheme for line in self.lines if line.scheme != self.primary_scheme))

    def without_legacy(self) -> Census:
        """Return the census of the rows that are in no format of PulsePlan's."""
        return replace(self, lines=tuple(line for line in self.lines if not line.is_legacy))

    def needing_version(self, version: int) -> int:
        """Count the rows that need this version of the master key."""
        return self._count(lambda need: _version(need) == version)

    def below_version(self, version: int) -> int:
        """Count the rows that `MIN_KEY_VERSION` at this version would refuse."""
        return self._count(lambda need: (found := _version(need)) is not None and found < version)

    @property
    def versions(self) -> dict[int, int]:
        """The rows by the versions of the master key that they need."""
        found = {version for line in self.lines for need in line.needs if (version := _version(need)) is not None}
        return {version: self.needing_version(version) for version in sorted(found)}

    @property
    def legacy(self) -> int:
        """Rows that `ALLOW_LEGACY_FORMATS=false` would refuse."""
        return sum(line.rows for line in self.lines if line.is_legacy)

    @property
    def unknown(self) -> int:
        """Rows in no known format, or with a scheme that the vault does not write."""
        return sum(line.rows for line in self.lines if line.is_unknown)

    @property
    def malformed(self) -> int:
        """Rows with a ciphertext in no known format, under a scheme that the vault writes or under none."""
        return self.unknown - self.strange

    @property
    def disagreeing(self) -> int:
        """Rows that name another known scheme than their ciphertexts have; only a verified census finds them."""
        return sum(line.rows for line in self.lines if line.disagrees and not line.is_unknown)

    def _count(self, applies: Callable[[str], bool]) -> int:
        return sum(line.rows for line in self.lines if any(map(applies, line.needs)))


def _version(need: str) -> int | None:
    found = _LOCAL.fullmatch(need)
    return int(found[1]) if found else None
