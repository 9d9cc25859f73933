"""What `dev.py` does: ComfyUI and an environment for it, a server with the pack, demo and tests."""
