"""MagicFace and MagicStyle in a sampling run."""
