"""What TensorBoard gets of an ended epoch beside the numbers of its line: by class, by stage, and of the memory."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.training.fsdp_tensors import square_sum
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.utils.printable import one_line

if sys.platform != "win32":
    import resource

MOST_CLASSES = 100  # a chart for each of more classes would hide all others
_LONGEST_NAME = 60
_ON_GPU = "peak_cuda_gib"
GPU_PEAK = f"memory/{_ON_GPU}"  # its name in TensorBoard


def epoch_curves(training: Training, validation: Validation) -> dict[str, float]:
    """The scalars of an epoch that has just ended, by their names in TensorBoard.

    All follows from what a checkpoint holds, so a resumed run finds the same; but for the memory.

    Args:
        training: after the epoch's last step.
        validation: of the epoch.
    """
    scores = zip(chart_names(training.model.class_names), validation.f1_by_class, strict=True)
    by_class = {f"f1_by_class/{name}": score for name, score in scores if score is not None}
    rates, ratios = stage_rates(training.optimizer), update_ratios(training.optimizer)
    return {
        **(by_class if training.model.num_classes <= MOST_CLASSES else {}),
        **{f"learning_rate_by_stage/{stage}": rate for stage, rate in rates.items()},
        **{f"update_ratio/{stage}": ratio for stage, ratio in ratios.items()},
        **{f"memory/{name}": value for name, value in peak_memory(training.precision.device).items()},
    }


def run_rate(optimizer: Optimizer) -> float:
    """The learning rate of the last step, without the factors of stages and head."""
    # The last stage has no factor. Where a factor makes a rate small, it is min_lr in its place.
    _, rate = min((abs(group["lr_scale"] - 1), group["lr"] / group["lr_scale"]) for group in optimizer.param_groups)
    return float(rate)


def stage_rates(optimizer: Optimizer) -> dict[str, float]:
    """The last step's learning rate of each stage that is trained; empty where all have the run's own."""
    groups = [group for group in optimizer.param_groups if any(p.requires_grad for p in group["params"])]
    if all(group["lr_scale"] == 1 for group in groups):
        return {}
    return {group["name"].split("/")[0]: float(group["lr"]) for group in groups}


@torch.no_grad()
def update_ratios(optimizer: Optimizer) -> dict[str, float]:
    """Norm of the last step's update over the norm of the weights, by trained stage.

    Of the weights that decay: all but norms, biases and position embeddings. The update is computed once more from
    the optimizer's averages, so no copy of the weights is needed, and a resumed run finds the same. SGD does not keep
    the last gradient; its momentum, which is that smoothed, stands for Nesterov's step. Without momentum: empty.
    """
    squares: dict[str, tuple[Tensor, Tensor]] = {}
    for group in optimizer.param_groups:
        is_kept = not group["name"].endswith("/no_decay")
        moved = [p for p in group["params"] if is_kept and p.requires_grad and optimizer.state.get(p)]
        updates = [_direction(optimizer.state[p], p, group) for p in moved]
        known = [update for update in updates if update is not None]
        if moved and len(known) == len(moved):
            squares[group["name"]] = group["lr"] ** 2 * square_sum(known), square_sum(moved)
    if not squares:
        return {}
    pairs = torch.stack([part for pair in squares.values() for part in pair]).tolist()  # waits for the device once
    found = zip(squares, pairs[::2], pairs[1::2], strict=True)
    return {stage: (update / weights) ** 0.5 for stage, update, weights in found if weights > 0}


def _direction(state: dict[str, Any], weights: Tensor, group: dict[str, Any]) -> Tensor | None:
    """What was subtracted from the weights, up to the learning rate."""
    if "exp_avg" in state:
        steps, (beta1, beta2) = float(state["step"]), group["betas"]
        mean: Tensor = state["exp_avg"] / (1 - beta1**steps)
        spread = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        # AdamW's decay does not go through the averages, Adam's L2 does.
        return mean.div_(spread).add_(weights, alpha=group["weight_decay"] * group["decoupled_weight_decay"])
    momentum: Tensor | None = state.get("momentum_buffer")
    return momentum


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process had at once so far, in GiB; on a GPU also that of its tensors there."""
    found = {"peak_resident_gib": _peak_resident() / 2**30}
    if device.type == "cuda":
        found[_ON_GPU] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def _peak_resident() -> int:
    """In bytes."""
    try:  # getrusage counts what the process that started this one had, too
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(2**10 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if sys.platform == "win32":
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def chart_names(class_names: Sequence[str]) -> list[str]:
    """Class names that TensorBoard shows in one line and one group; those that would become the same get numbers."""
    shown = [one_line(name).replace("/", "_")[:_LONGEST_NAME] for name in class_names]
    counts = Counter(shown)
    return [name if counts[name] == 1 else f"{name} ({place})" for place, name in enumerate(shown)]
