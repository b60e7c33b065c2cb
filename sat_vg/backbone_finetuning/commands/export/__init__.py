"""The command ``sat-vg export``."""
