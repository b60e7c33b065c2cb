"""The command ``sat-vg compare``."""
