"""The command ``sat-vg evaluate``."""
