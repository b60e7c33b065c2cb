"""``python -m sat_vg COMMAND`` is ``sat-vg COMMAND``."""

import sys

from sat_vg.cli import main

if __name__ == "__main__":
    sys.exit(main())
