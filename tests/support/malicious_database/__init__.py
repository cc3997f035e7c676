"""A database that writes its rows as it likes, and the state machine that calls the vault in between."""
