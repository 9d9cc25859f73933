"""Looking into a run: attention maps, and where in the references a place looked."""
