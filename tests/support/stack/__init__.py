"""The parts that the tests run against: PostgreSQL and PostgREST, and stand-ins for Supabase's gateway and AWS KMS.

They need neither Docker nor root, listen on loopback only, and end with the process that started them, however that
process ends.
"""
