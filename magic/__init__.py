"""The algorithms: torch and numpy only."""
