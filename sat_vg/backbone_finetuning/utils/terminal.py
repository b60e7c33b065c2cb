"""Lines for the person at the terminal."""

import sys

from tqdm import tqdm

from sat_vg.backbone_finetuning.utils.printable import printable


def say(text: str) -> None:
    """Print a line above any progress bar, at once, with control characters made visible."""
    tqdm.write(printable(text), file=sys.stdout)
    sys.stdout.flush()
