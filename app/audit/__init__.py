"""The audit trail: one signed, chained line for each attempt on a token."""
