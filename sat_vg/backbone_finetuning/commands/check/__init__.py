"""The command ``sat-vg check``."""
