"""Whether a run can stand where its checkpoint says, and how a run that has ended is trained on."""

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.assembly import plan_phases
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.checkpoint_checks import places_of, steps_of
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.run_folder import EarlierRun
from sat_vg.backbone_finetuning.training.run_identity import config_of_run, reopened_place
from sat_vg.backbone_finetuning.training.step_results import LONGEST_HISTORY, MOST_SKIPPED_IN_A_ROW
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home


def require_place(
    state: RunState,
    content: Mapping[str, Any],
    training: Training,
    phases: Sequence[Phase],
    path: object,
    metric: str,
) -> None:
    """Refuse a state that no run of this plan can have come to.

    Args:
        state: of the run.
        content: of the checkpoint that it was read from.
        training: what is to go on.
        phases: of the run.
        path: of the checkpoint.
        metric: that the best epoch is told by.

    Raises:
        CheckpointError: it names what does not fit.
    """
    place, values = _wrong_place(state, training, phases), _wrong_values(state, metric)
    # One by one: what comes later relies on what comes before it.
    problem = next(chain(place, values, _wrong_parts(state, content, training, phases)), None)
    if problem is not None:
        raise CheckpointError(
            f"{str(path)!r} cannot be gone on with: {problem}. It was altered, or belongs to another run: use an "
            "earlier checkpoint, or begin anew with --resume never"
        )


def _wrong_place(state: RunState, training: Training, phases: Sequence[Phase]) -> Iterator[str]:
    """What is wrong with phase, epoch and step, and what they bound."""
    plan, earlier, running = training.plan, phases[: state.phase], phases[state.phase : state.phase + 1]
    if state.phase > len(phases) or state.finished is bool(running):
        yield (
            f"it is in phase {state.phase + 1} of {len(phases)} and has {'' if state.finished else 'not '}finished"
        )
        return
    before = state.epoch - state.epoch_in_phase
    in_phase = sum(phase.epochs for phase in running)
    if state.epoch_in_phase > in_phase or not len(earlier) <= before <= sum(phase.epochs for phase in earlier):
        yield f"its epoch {state.epoch}, {state.epoch_in_phase} of them in phase {state.phase + 1}, is not planned"
        return
    steps_an_epoch = plan.num_batches if running and running[0].method == "gradient" else 0
    epochs_before = before - sum(phase.method != "gradient" for phase in earlier)
    step = epochs_before * plan.num_batches + state.epoch_in_phase * steps_an_epoch + state.step_in_epoch
    if state.step_in_epoch > steps_an_epoch or state.step != step:
        yield (
            f"its step {state.step}, {state.step_in_epoch} of them in the running epoch, does not fit {state.epoch} "
            f"epochs of {plan.num_batches} steps"
        )
    smallest, more = divmod(plan.num_samples, plan.num_batches)
    images = state.step_in_epoch * smallest + min(state.step_in_epoch, more)
    if steps_an_epoch and state.train_images != images:
        yield f"its train_images are {state.train_images}, and {state.step_in_epoch} steps have {images}"
    for name, value, most in (
        ("train_images", state.train_images, plan.num_samples if running else 0),
        ("window_images", state.window_images, state.step * plan.batch_sizes[1]),
        ("spikes", state.spikes, state.step_in_epoch),
        ("skipped_steps", state.skipped_steps, state.step_in_epoch),
        ("skipped_in_a_row", state.skipped_in_a_row, min(state.step, MOST_SKIPPED_IN_A_ROW)),
        ("number of recent_losses", len(state.recent_losses), min(state.step, LONGEST_HISTORY)),
        ("micro_batch_size", state.micro_batch_size, training.micro_batches.size),
        ("best_epoch", state.best_epoch, state.epoch),
        ("epochs_without_improvement", state.epochs_without_improvement, state.epoch),
        ("plateau_waited", state.plateau_waited, state.epoch),
        ("plateau_factor", state.plateau_factor, 1),
        ("wise_ft_share", state.wise_ft_share or 0, 1),
    ):
        if not 0 <= value <= most:
            yield f"its {name} is {value}, which is not from 0 to {most}"
    if state.train_seconds < 0 or (state.best_value is not None and not state.best_epoch):
        yield f"its train_seconds are {state.train_seconds}, or its best value is of no epoch"


def _wrong_values(state: RunState, metric: str) -> Iterator[str]:
    """What is wrong with the best values so far: losses are 0 or more, and all other metrics shares."""
    most = math.inf if metric == "val_loss" else 1
    for name, value, largest in (
        ("best_value", state.best_value, most),
        ("phase_best", state.phase_best, most),
        ("phase_reference", state.phase_reference, most),
        ("best_loss", state.best_loss, math.inf),
    ):
        if value is not None and not 0 <= value <= largest:
            limits = "0 or more" if largest == math.inf else f"from 0 to {largest}"
            yield f"its {name} is {value}, and {metric if largest == most else 'val_loss'} is {limits}"


def _wrong_parts(
    state: RunState, content: Mapping[str, Any], training: Training, phases: Sequence[Phase]
) -> Iterator[str]:
    """What is wrong with which parameters have been trained, and with what mixing needs."""
    may, must = _trained(state, training, phases)
    found = steps_of(training.tensors.regroup(content["optimizer"]))
    places = places_of(training.model.network, training.optimizer)
    for name, place in places.items():
        if name in must and place not in found:
            yield f"its optimizer knows nothing of {name}, which was trained"
        if name not in may and place in found:
            yield f"its optimizer has a history of {name}, which was not trained"
        if found.get(place, 0) > state.step:
            yield f"its optimizer took {found[place]} steps with {name}, and the run {state.step}"
    begun = [phase for phase in phases[: state.phase] if phase.method == "gradient"] or state.step
    if training.start_weights.own and begun and not content.get("origin"):
        yield "it does not hold the weights that the phase began with"


def _trained(state: RunState, training: Training, phases: Sequence[Phase]) -> tuple[set[str], set[str]]:
    """Names of the parameters that an optimizer may have a state of by now, and of those that it must have one of."""
    model, before = training.model, training.model.trainable_stages
    may: set[str] = set()
    must: set[str] = set()
    # Loss scaling may leave the first steps of a phase out.
    skipped = MOST_SKIPPED_IN_A_ROW if training.scaler.is_enabled() else 0
    for place, phase in enumerate(phases[: state.phase + 1]):
        steps = training.plan.num_batches * (state.epoch_in_phase if place == state.phase else 1)
        steps += state.step_in_epoch if place == state.phase else 0
        if phase.method != "gradient" or not steps:
            continue
        phase.apply_to(model)
        names = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
        may |= names
        must |= names if steps > skipped else set()
    model.set_trainable(before)
    group = training.optimizer.param_groups[0]
    keeps_nothing = isinstance(training.optimizer, torch.optim.SGD) and not group["momentum"]
    return (set(), set()) if keeps_nothing else (may, must)


def epochs_to_reopen(earlier: EarlierRun, phases: list[Phase], model: FineTuneModel) -> int | None:
    """The epochs that a finished run has done of its last phase, of which more are asked for now; else None."""
    if not earlier.content["state"].get("finished"):
        return None
    then = plan_phases(config_of_run(earlier.content, earlier.path), model)
    return reopened_place(then, phases, earlier.content["state"])


def way_to_train_on(config: FinetuneConfig, earlier: EarlierRun) -> str:
    """How to begin another run from the best weights of an earlier one, as a command."""
    taken, number = (expand_home(config.checkpoint_dir), expand_home(config.log_dir)), 2
    while any(_beside(folder, number).exists() for folder in taken):
        number += 1
    checkpoints, logs = (_beside(folder, number) for folder in taken)
    flags = config.as_flags(leave_out=("weights", "pretrained", "name", "checkpoint_dir", "log_dir", "resume"))
    pretrained = [] if config.pretrained else ["--pretrained", "true"]
    flags += [*pretrained, "--weights", str(earlier.path.with_name(BEST_MODEL))]
    flags += ["--checkpoint_dir", str(checkpoints), "--log_dir", str(logs)]
    return f"To train on from its best weights: {shlex.join(['sat-vg', 'train', *flags])}"


def _beside(folder: Path, number: int) -> Path:
    if folder.name in ("", ".."):  # the folder that the command runs in, or one around it
        folder = Path(os.path.abspath(folder))  # noqa: PTH100 - without following links
    return folder.parent / f"{folder.name or 'run'}_{number}"
