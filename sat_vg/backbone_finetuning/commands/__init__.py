"""One module, or one folder with cli.py and run.py, per command of sat-vg."""
