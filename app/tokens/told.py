"""Which rows were told to be unreadable, and why."""

from __future__ import annotations

from typing import Final

REMEMBERED: Final = 10_000


class Told:
    """Remembers what was told, so that it is told once. Once it holds `REMEMBERED` rows, others are told each time."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def is_news(self, row_id: str, code: str) -> bool:
        """Return whether the row has not been told with this code, and remember it."""
        if self._codes.get(row_id) == code:
            return False
        if row_id in self._codes or len(self._codes) < REMEMBERED:
            self._codes[row_id] = code
        return True

    def forget(self, row_id: str) -> None:
        """Forget a row that was read, so that it is told again if it breaks again."""
        self._codes.pop(row_id, None)
