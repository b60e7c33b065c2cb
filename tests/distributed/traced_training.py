"""The training command, started by torchrun, which also writes down the images of every step that this process takes.

``TRACE`` names the file: one JSON object a line, with rank, number of ranks, process id, step and indices. Nothing
else differs from the command.
"""

import json
import os
import sys
from pathlib import Path

from sat_vg.backbone_finetuning.train import main
from sat_vg.backbone_finetuning.training import loop

take_step = loop.train_step


def traced(training, source, batch, learning_rate, step, *more):
    ranks = training.ranks
    line = {"rank": ranks.rank, "count": ranks.count, "pid": os.getpid(), "step": step}
    with Path(os.environ["TRACE"]).open("a") as file:  # a short line, appended at once: processes do not get mixed
        file.write(json.dumps({**line, "indices": batch.indices.tolist()}) + "\n")
    return take_step(training, source, batch, learning_rate, step, *more)


def trace_steps() -> None:
    loop.train_step = traced


if __name__ == "__main__":
    trace_steps()
    sys.exit(main())
