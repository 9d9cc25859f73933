"""The metrics of the papers."""
