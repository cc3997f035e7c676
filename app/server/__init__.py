"""The serving process: HTTP limits, TLS, workers, hardening."""
