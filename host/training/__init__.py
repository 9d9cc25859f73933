"""MagiCapture's training."""
