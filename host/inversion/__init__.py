"""A picture as the noise that a sampler turns into it again, in memory and on disk."""
