"""What fails, what callers and operators see of it, and that nothing acknowledged is lost."""
