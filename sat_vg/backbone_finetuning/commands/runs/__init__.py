"""``sat-vg runs``: the runs below a folder, in a table."""
