"""How a run that has ended, or was begun with other settings, is gone on with: by more epochs, or by its weights."""

import shlex

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.assembly import plan_phases
from sat_vg.backbone_finetuning.training.checkpoint import BEST_MODEL
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.run_course import config_of_run, reopened_place
from sat_vg.backbone_finetuning.training.run_folder import EarlierRun
from sat_vg.backbone_finetuning.utils.home_paths import expand_home


def epochs_to_reopen(earlier: EarlierRun, phases: list[Phase], model: FineTuneModel) -> int | None:
    """The epochs that a finished run has done of its last phase, of which more are asked for now; else None."""
    if not earlier.content["state"].get("finished"):
        return None
    then = plan_phases(config_of_run(earlier.content, earlier.path), model)
    return reopened_place(then, phases, earlier.content["state"])


def way_to_train_on(config: FinetuneConfig, earlier: EarlierRun) -> str:
    """How to begin another run from the best weights of an earlier one, as a command."""
    taken, number = (expand_home(config.checkpoint_dir), expand_home(config.log_dir)), 2
    while any(folder.with_name(f"{folder.name}_{number}").exists() for folder in taken):
        number += 1
    checkpoints, logs = (folder.with_name(f"{folder.name}_{number}") for folder in taken)
    flags = config.as_flags(leave_out=("weights", "pretrained", "checkpoint_dir", "log_dir", "resume"))
    pretrained = [] if config.pretrained else ["--pretrained", "true"]
    flags += [*pretrained, "--weights", str(earlier.path.with_name(BEST_MODEL))]
    flags += ["--checkpoint_dir", str(checkpoints), "--log_dir", str(logs)]
    return f"To train on from its best weights: {shlex.join(['sat-vg', 'train', *flags])}"
