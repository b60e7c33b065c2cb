"""The command ``sat-vg shard``."""
