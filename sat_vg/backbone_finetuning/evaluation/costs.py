"""What a network costs: parameters, floating-point operations, and images per second."""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.precision import Precision

_WARM_UP_BATCHES = 2


@dataclass(frozen=True)
class Timing:
    """How speed is measured."""

    batch_size: int = 32  # images at once
    rounds: int = 5  # measurements of each network; the median counts
    seconds: float = 0.3  # the shortest measurement


@dataclass(frozen=True)
class Network:
    """A network to measure."""

    model: FineTuneModel  # in eval mode
    image_size: int  # height and width of its images in pixels
    precision: Precision  # device and number formats that suit it


def count_parameters(model: FineTuneModel) -> int:
    """All parameters, the classifier's and those of auxiliary ones included."""
    return sum(model.parameter_counts().values())


def count_flops(model: FineTuneModel, image_size: int) -> int:
    """Floating-point operations of the forward pass of one image ``[3, image_size, image_size]``.

    Convolutions and matrix products, attention included; a multiplication and an addition are two operations, so the
    number is twice that of publications that count them as one.
    """
    model.eval()
    # Which kernel torch picks for attention depends on its version, the processor and the gradients, and the counter
    # knows not all of them. So attention is computed as the matrix products that it consists of.
    with _plain_attention(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, model.in_channels, image_size, image_size, device=next(model.parameters()).device))
    return int(counter.get_total_flops())


@contextmanager
def _plain_attention() -> Iterator[None]:
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def images_per_second(networks: Mapping[str, Network], timing: Timing | None = None) -> dict[str, float]:
    """Images per second from normalised images in the device's memory to logits, by the networks' keys.

    It is the median of all rounds. The networks take turns, so that other load on the machine slows all of them
    alike.
    """
    timing = timing or Timing()
    batches = {}
    for key, one in networks.items():
        one.precision.place_model(one.model.eval())
        shape = (timing.batch_size, one.model.in_channels, one.image_size, one.image_size)
        batches[key] = one.precision.place_images(torch.zeros(shape, device=one.precision.device))
        _run(one, batches[key], _WARM_UP_BATCHES)
    speeds: dict[str, list[float]] = {key: [] for key in networks}
    with tqdm(total=timing.rounds * len(networks), desc="inference speed", leave=False, disable=None) as bar:
        for _ in range(timing.rounds):
            for key, one in networks.items():
                speeds[key].append(_measure(one, batches[key], timing.seconds))
                bar.update()
    return {key: statistics.median(values) for key, values in speeds.items()}


def _measure(network: Network, images: Tensor, seconds: float) -> float:
    _run(network, images, 1)  # the caches held another network's weights
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds or not count:
        _run(network, images, 1)
        count += 1
    return count * len(images) / passed


@torch.inference_mode()
def _run(network: Network, images: Tensor, times: int) -> None:
    for _ in range(times):
        with network.precision.autocast():
            logits = network.model(images)
    logits.float().sum().item()  # waits for the device
