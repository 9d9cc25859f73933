"""Faces: found, told apart, restored."""
