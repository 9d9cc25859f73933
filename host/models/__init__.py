"""Models of the user's own files: where they lie, and networks that the host manages."""
