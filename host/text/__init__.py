"""Prompts as a model reads them, and learned words."""
