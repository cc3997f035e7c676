"""The only package that chooses implementations: settings in, objects out."""
