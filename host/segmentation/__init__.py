"""From words, points and faces to masks."""
