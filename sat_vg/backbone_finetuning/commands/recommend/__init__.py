"""The command ``sat-vg recommend``."""
