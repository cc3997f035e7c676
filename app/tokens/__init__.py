"""The domain: tokens, the operations on them, and the interfaces that these need."""
