"""The audit trail: one signed, chained line for each operation on a token."""
