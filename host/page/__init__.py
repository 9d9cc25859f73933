"""What the browser page is told."""
