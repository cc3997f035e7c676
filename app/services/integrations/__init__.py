"""Import paths that PulsePlan's scripts use."""
