"""What a sampling run is made of: attention calls, rows, references, features, and the backbone of
a model."""
