"""The command ``sat-vg serve``."""
