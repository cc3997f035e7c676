"""PulsePlan's token vault."""
