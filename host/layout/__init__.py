"""Which words own which part of the picture: measured in a run, recorded, and as masks."""
