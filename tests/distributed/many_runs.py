"""Several trainings one after another in the same processes, started by torchrun.

The file that the first argument names holds ``{name: settings}``; each run has a folder of its name. ``states.jsonl``
gets, from every rank, a hash of its own weights and buffers at the end of each run.
"""

import hashlib
import json
import sys
from pathlib import Path

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training import run as recipe

fit = recipe.fit
running = [""]


def hashed_fit(training, phases, stopping, outputs, state):
    fit(training, phases, stopping, outputs, state)
    digest = hashlib.sha256()
    for tensor in training.model.network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    line = {"run": running[0], "rank": training.ranks.rank, "hash": digest.hexdigest(), "epochs": state.epoch}
    with Path("states.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    recipe.fit = hashed_fit
    for name, settings in json.loads(Path(sys.argv[1]).read_text()).items():
        running[0] = name
        recipe.finetune(FinetuneConfig(**settings, log_dir=f"{name}/logs", checkpoint_dir=f"{name}/ckpt"))
