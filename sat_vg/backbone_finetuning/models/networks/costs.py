"""What every backbone costs and reaches on ImageNet: measured once, stored as JSON (``make costs``).

Reading it needs no torch.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BYTES_PER_FROZEN = 8  # of a parameter: fp32, and copies in another number format
COSTS_FILE = Path(__file__).with_name("backbone_costs.json")


@dataclass(frozen=True)
class BackboneCosts:
    """One backbone at the image size of its best published weights."""

    name: str
    image_size: int  # in pixels
    top_1: float | None  # on ImageNet, in per cent, as torchvision gives it; None where no weights are published
    top_5: float | None
    parameters: int  # with ImageNet's classifier
    flops: int  # forward pass of one image, a multiplication and an addition being two
    fixed_bytes: int  # of a training step of all stages with AdamW, in bf16: see tests/bench/counted_memory.py
    bytes_per_image: int  # of that step
    forward_bytes_per_image: int  # of a forward pass without gradients, in bf16
    fixed_bytes_fp32: int  # the same three in fp32
    bytes_per_image_fp32: int
    forward_bytes_per_image_fp32: int
    images_per_second: float | None  # inference in batches of 4; None where it was not measured
    milliseconds: float | None  # inference of a single image

    def largest_batch(self, num_bytes: float, image_size: int | None = None, in_fp32: bool = False) -> int:
        """Images of a training step that fits into so many bytes; 0 where none does."""
        fixed = self.fixed_bytes_fp32 if in_fp32 else self.fixed_bytes
        per_image = self.bytes_per_image_fp32 if in_fp32 else self.bytes_per_image
        return max(0, int((num_bytes - fixed) / (per_image * self.growth(image_size))))

    def largest_probe_batch(self, num_bytes: float, image_size: int | None = None, in_fp32: bool = False) -> int:
        """Images of a frozen network's forward pass that fits into so many bytes; 0 where none does."""
        per_image = self.forward_bytes_per_image_fp32 if in_fp32 else self.forward_bytes_per_image
        free = num_bytes - _BYTES_PER_FROZEN * self.parameters
        return max(0, int(free / (per_image * self.growth(image_size))))

    def growth(self, image_size: int | None) -> float:
        """How many times the area of its own images these have, and with it FLOPs, time and activations."""
        return ((image_size or self.image_size) / self.image_size) ** 2


@cache
def read_costs() -> dict[str, BackboneCosts]:
    """The costs of all backbones of the table, by name."""
    rows = json.loads(COSTS_FILE.read_text(encoding="utf-8"))["backbones"]
    return {name: BackboneCosts(name=name, **row) for name, row in rows.items()}


def costs_were_measured() -> str:
    """Where and when the file was measured, in a sentence."""
    return str(json.loads(COSTS_FILE.read_text(encoding="utf-8"))["measured"])
