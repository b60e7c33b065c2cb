"""The command ``sat-vg tune``."""
