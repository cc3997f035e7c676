"""Token stores: the implementations of `TokenRepository`."""
