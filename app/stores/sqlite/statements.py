"""The SQL of the SQLite store. `{…}` is filled in with the names of columns and further conditions."""

from __future__ import annotations

from typing import Final

from app.stores.rows import COLUMNS
from app.stores.sqlite.database import REFRESHABLE

ID: Final = "CAST(? AS TEXT)"  # of a row, given as bytes
BY_ID: Final = f"WHERE id = {ID}"
OF_VERSION: Final = f"{BY_ID} AND version = ?"
AFTER_ID: Final = f"id > {ID}"
SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM oauth_tokens"  # noqa: S608  constants only
_INTEGERS: Final = frozenset({"version", "is_active", "refresh_generation", "refresh_attempts"})
_BYTES: Final = ", ".join(name if name in _INTEGERS else f"CAST({name} AS BLOB)" for name in COLUMNS)
SELECT_BYTES: Final = f"SELECT {_BYTES} FROM oauth_tokens"  # noqa: S608  constants only
INSERT: Final = (
    f"INSERT INTO oauth_tokens ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "  # noqa: S608  constants only
    "ON CONFLICT (user_id, provider, service_type) DO NOTHING RETURNING version"
)
DELETE: Final = f"DELETE FROM oauth_tokens {OF_VERSION} RETURNING version"  # noqa: S608  constants only
# Merges the metadata by RFC 7396: null removes a key.
REWRAP: Final = """
UPDATE oauth_tokens
SET access_token = ?, refresh_token = coalesce(?, refresh_token), encryption_scheme = ?,
    metadata = json_patch(metadata, ?)
WHERE id = ? AND version = ? AND encryption_scheme IS ?
  AND access_token = ? AND coalesce(refresh_token, '') = ?
RETURNING id
"""
CLAIM: Final = """
UPDATE oauth_tokens
SET refresh_generation = refresh_generation + 1, refresh_holder = :holder,
    refresh_leased_until = unixepoch('subsec') + :lease_seconds
WHERE id = :id AND version = :version AND encryption_scheme IS :scheme
  AND refresh_generation = :generation AND refresh_holder IS :old_holder
  AND (refresh_holder IS NULL OR coalesce(refresh_leased_until < unixepoch('subsec'), 1))
RETURNING id
"""
SETTLE: Final = """
UPDATE oauth_tokens
SET {assignments}refresh_holder = NULL, refresh_leased_until = NULL, version = version + :raise,
    metadata = json_patch(metadata, :changes)
WHERE id = CAST(:id AS TEXT) AND refresh_holder = :holder AND refresh_generation = :generation
RETURNING id
"""
# Timestamps are text of one form in UTC, so their order is that of the text.
DUE: Final = f"""
WHERE provider = :provider AND {{column}} < :before AND {REFRESHABLE}{{more}}
  AND (refresh_attempts > 0) = :failed AND (refresh_retry_at IS NULL OR refresh_retry_at <= :now)
  AND (refresh_leased_until IS NULL OR refresh_leased_until < unixepoch('subsec'))
ORDER BY {{column}}, id LIMIT :limit
"""
# The status that a decoded row shows; metadata that is no JSON cannot be asked.
STATUS: Final = """
CASE
    WHEN NOT json_valid(metadata) THEN 'error'
    WHEN coalesce(json_extract(metadata, '$.status'), 'ok') = 'ok' THEN iif(is_active = 0, 'needs_reauth', 'ok')
    WHEN json_extract(metadata, '$.status') IN ('needs_reauth', 'revoked') THEN json_extract(metadata, '$.status')
    ELSE 'error'
END
"""
CENSUS: Final = """
SELECT CAST(encryption_scheme AS BLOB), NULL, NULL, count(*) FROM oauth_tokens
WHERE encryption_scheme IS NOT NULL AND (:provider IS NULL OR provider = :provider)
GROUP BY encryption_scheme
UNION ALL
SELECT NULL, material_of(CAST(access_token AS BLOB)), material_of(CAST(nullif(refresh_token, '') AS BLOB)), count(*)
FROM oauth_tokens
WHERE encryption_scheme IS NULL AND (:provider IS NULL OR provider = :provider)
GROUP BY 2, 3
"""
# Finds each next scheme by one index lookup instead of reading all rows.
SCHEMES: Final = """
WITH RECURSIVE found(scheme) AS (
    SELECT min(encryption_scheme) FROM oauth_tokens
    UNION ALL
    SELECT (SELECT min(encryption_scheme) FROM oauth_tokens WHERE encryption_scheme > scheme)
    FROM found WHERE scheme IS NOT NULL
)
SELECT CAST(scheme AS BLOB) FROM found WHERE scheme IS NOT NULL
UNION ALL
SELECT NULL WHERE EXISTS (SELECT 1 FROM oauth_tokens WHERE encryption_scheme IS NULL)
"""
