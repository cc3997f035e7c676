"""Schemathesis over the whole OpenAPI document of a running vault."""
