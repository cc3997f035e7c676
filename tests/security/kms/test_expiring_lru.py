"""What a bounded mapping whose values end keeps, and that it keeps nothing beside it."""

from __future__ import annotations

import tracemalloc

from app.security.kms.data_key_cache import ExpiringLru


def test_names_that_were_dropped_leave_nothing_behind() -> None:
    kept: ExpiringLru[int, object] = ExpiringLru(size=10)
    value = object()
    tracemalloc.start()
    try:
        for number in range(100_000):
            kept.put(number, value, ends_at=1e9, now=0.0)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == 10
    assert grown < 100_000, "bytes, for a hundred thousand names"


def test_one_that_is_put_again_ends_when_it_then_says() -> None:
    kept: ExpiringLru[str, int] = ExpiringLru(size=10)
    kept.put("a", 1, ends_at=10, now=0)
    kept.put("b", 2, ends_at=12, now=2)
    kept.put("a", 3, ends_at=15, now=5)
    kept.drop_ended(now=11)
    assert (kept.get("a", now=11), kept.get("b", now=11)) == (3, 2)
    kept.drop_ended(now=12)
    assert len(kept) == 1
    assert kept.get("a", now=14.9) == 3
    assert kept.get("a", now=15) is None
    assert len(kept) == 0


def test_what_has_ended_already_is_not_kept_and_replaces_what_was() -> None:
    kept: ExpiringLru[str, int] = ExpiringLru(size=10)
    kept.put("a", 1, ends_at=10, now=0)
    kept.put("a", 2, ends_at=5, now=5)
    assert (len(kept), kept.get("a", now=5)) == (0, None)
