"""What the pack knows of a kind of model: UNets here, a module each."""
