"""Image files as tensors."""
