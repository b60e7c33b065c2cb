"""The command ``sat-vg predict``."""
