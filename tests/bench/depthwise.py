"""Training steps in bf16 on a CPU, with torch's gradients of depthwise convolutions and with ours, in turns.

    python tests/bench/depthwise.py --pairs 5 --threads 1

A step is forward, loss and backward of a network with random weights on 32 images that lie in memory. Prints images
per CPU second, medians, and of the pairs' ratios median, least and most. ``fp32`` is torch without autocast.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from sat_vg.backbone_finetuning.training.depthwise import with_fast_depthwise
from sat_vg.backbone_finetuning.utils.allocator import keep_freed_memory
from sat_vg.backbone_finetuning.utils.precision import Precision

ROWS = [
    ("mobilenet_v2", 64), ("mobilenet_v2", 224), ("mobilenet_v3_large", 128), ("mnasnet1_0", 128),
    ("efficientnet_b0", 128), ("timm:tf_efficientnet_lite0", 64), ("timm:tf_efficientnet_lite0", 224),
    ("shufflenet_v2_x1_0", 128), ("convnext_tiny", 96),
]  # fmt: skip
BATCH = 32


def build(name: str) -> nn.Module:
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), num_classes=10)
    return torchvision.models.get_model(name, num_classes=10)


def rate(outputs: Callable[[torch.Tensor], torch.Tensor], precision: Precision, images: torch.Tensor) -> float:
    """Images per CPU second of two steps."""
    clock = time.process_time()
    for _ in range(2):
        with precision.autocast():
            logits = outputs(images)
        nn.functional.cross_entropy(logits.float(), torch.arange(BATCH) % 10).backward()
    return 2 * BATCH / (time.process_time() - clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    fp32, bf16 = (Precision(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))
    print(
        "| network, pixels | torch, fp32 | torch, bf16 | ours, bf16 | ours / torch in bf16 |\n|---|---|---|---|---|"
    )
    for name, size in ROWS:
        network = build(name).train()
        bf16.place_model(network)
        images = bf16.place_images(torch.randn(BATCH, 3, size, size))
        ways = ((network, fp32), (network, bf16), (with_fast_depthwise(network, network, bf16), bf16))
        for outputs, precision in ways:
            rate(outputs, precision, images)
        rates = [[rate(outputs, precision, images) for outputs, precision in ways] for _ in range(options.pairs)]
        medians = [statistics.median(column) for column in zip(*rates, strict=True)]
        ratios = [ours / theirs for _, theirs, ours in rates]
        print(
            f"| {name.removeprefix('timm:')}, {size} | " + " | ".join(f"{value:.3g}" for value in medians)
            + f" | **{statistics.median(ratios):.2f}** ({min(ratios):.2f} – {max(ratios):.2f}) |", flush=True
        )  # fmt: skip


if __name__ == "__main__":
    main()
