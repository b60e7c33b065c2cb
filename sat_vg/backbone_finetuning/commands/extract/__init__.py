"""The command ``sat-vg extract``."""
