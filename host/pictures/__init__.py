"""Pictures, masks and folders of them."""
