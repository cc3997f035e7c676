"""The real parts that the tests run against: PostgreSQL, PostgREST, Supabase's gateway.

Everything runs without Docker and without root, listens on loopback only, and is
gone when the process that started it is gone, however that process ended.
"""
