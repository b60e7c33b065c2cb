"""Several trainings one after another in the same processes; some with their weights in shards.

The file that the first argument names holds ``{name: settings}``; each run has a folder of its name. ``ranks.jsonl``
gets, from every rank at the end of each run: a hash of the weights and buffers that it holds, how many weights and
how much optimizer state that is, how many units the model has, and whether a validation stops that only the last rank
was asked to stop.
"""

import hashlib
import json
import sys
from pathlib import Path

from torch import Tensor

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training import run as recipe
from sat_vg.backbone_finetuning.training.fsdp import units
from sat_vg.backbone_finetuning.training.fsdp_tensors import local_shard
from sat_vg.backbone_finetuning.training.validation import evaluate
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest, StopRequested

fit = recipe.fit
running = [""]


def is_stopped(training, validation, interrupt):
    try:
        evaluate(training.model, validation, training.precision, interrupt, replica=training.replica)
    except StopRequested:
        return True
    return False


def watched_fit(training, phases, stopping, outputs, state):
    fit(training, phases, stopping, outputs, state)
    interrupt, ranks = InterruptRequest(), training.ranks
    interrupt.requested = ranks.rank == ranks.count - 1
    validation = training.sources.image_source().validation()
    states = [tensor for of in training.optimizer.state.values() for tensor in of.values()]
    digest = hashlib.sha256()
    for tensor in training.model.network.state_dict().values():
        digest.update(local_shard(tensor).contiguous().numpy().tobytes())
    line = {
        "run": running[0],
        "rank": ranks.rank,
        "hash": digest.hexdigest(),
        "epochs": state.epoch,
        "weights": sum(local_shard(p).numel() for p in training.model.parameters()),
        "optimizer": sum(
            local_shard(tensor).numel() for tensor in states if isinstance(tensor, Tensor) and tensor.ndim
        ),
        "units": len(units(training.model)),
        "batches": len(validation),
        "stopped": is_stopped(training, validation, interrupt),
    }
    with Path("ranks.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    recipe.fit = watched_fit
    for name, settings in json.loads(Path(sys.argv[1]).read_text()).items():
        running[0] = name
        recipe.finetune(FinetuneConfig(**settings, log_dir=f"{name}/logs", checkpoint_dir=f"{name}/ckpt"))
