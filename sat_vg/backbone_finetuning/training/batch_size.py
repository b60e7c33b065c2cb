"""The largest batch that fits into memory, found by measuring two small ones."""

import copy
import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.batch_sources import image_values
from sat_vg.backbone_finetuning.utils.allocator import release_freed_memory
from sat_vg.backbone_finetuning.utils.machine_memory import machine_memory
from sat_vg.backbone_finetuning.utils.precision import Precision

LARGEST = 256
_SHARE = 0.8  # of the free memory; the rest is the margin
_SMALL, _LARGER = 2, 8
_FEWEST_STEPS = 20  # an epoch
_BYTES_PER_WEIGHT = 12  # its gradient and AdamW's two averages, fp32


class BatchSize(NamedTuple):
    """What was found.

    Attributes:
        images: of a batch.
        reason: in words.
    """

    images: int
    reason: str


def largest_batch(model: FineTuneModel, precision: Precision, num_images: int) -> BatchSize:
    """The largest power of two that fits into four fifths of the free memory, 256 at most, with 20 steps an epoch.

    Args:
        model: on its device, set to the stages that are trained; it is not changed.
        precision: device and formats.
        num_images: training images.
    """
    by_data = max(_SMALL, _power_of_two(num_images // _FEWEST_STEPS))
    most = min(LARGEST, by_data)
    because = f"{LARGEST} at most" if most == LARGEST else f"{_FEWEST_STEPS} steps an epoch"
    if most <= _LARGER:
        return BatchSize(most, because)
    probe = copy.deepcopy(model).train()
    small, larger = (_peak(precision, partial(_step, probe, precision, count)) for count in (_SMALL, _LARGER))
    if small is None or larger is None:
        return BatchSize(min(most, 32), "the memory of a step cannot be measured on this system")
    per_image = max(1, (larger - small) // (_LARGER - _SMALL))
    weights = _BYTES_PER_WEIGHT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    room = int(_SHARE * _free_bytes(precision.device)) - weights - max(0, small - _SMALL * per_image)
    fits = _power_of_two(max(_SMALL, room // per_image))
    del probe
    gc.collect()
    said = f"a step takes {per_image / 2**20:.0f} MiB an image"
    return (
        BatchSize(most, f"{because}; {said}") if fits >= most else BatchSize(fits, f"{said}, and more does not fit")
    )


def _power_of_two(most: int) -> int:
    return 1 << max(0, most.bit_length() - 1)


def _step(model: FineTuneModel, precision: Precision, count: int) -> None:
    size, bands = model.preprocessing.image_size, len(model.preprocessing.bands)
    images = torch.zeros(count, bands, size, size, dtype=torch.uint8, device=precision.device)
    batch = Batch(images, torch.zeros(count, 1), torch.zeros(count, dtype=torch.int64))
    with precision.autocast():
        outputs = model.training_outputs(image_values(model, precision, batch))
    torch.stack([logits.float().sum() for _, logits in outputs]).sum().backward()
    model.zero_grad(set_to_none=True)


def _peak(precision: Precision, run: Callable[[], None]) -> int | None:
    """The bytes that a step takes at its height above those before it; None where nothing tells."""
    run()  # the first one also loads libraries
    if precision.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if precision.device.type != "cpu" or not sys.platform.startswith("linux") or not forget.exists():
        return None
    release_freed_memory()
    forget.write_text("5")  # the highest so far becomes what it is now
    before = _resident(status, "VmRSS")
    run()
    return _resident(status, "VmHWM") - before


def _resident(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 2**10


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine_memory().available
