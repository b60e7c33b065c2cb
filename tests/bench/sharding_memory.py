"""What each process holds while it trains: a copy of everything, or its part in shards. On the CPU, by gloo.

    OMP_NUM_THREADS=1 python tests/bench/sharding_memory.py --processes 2 --backbone vit_b_16

Counted are the tensors that a process holds when a batch's gradients are there; the peak is what it had resident
since the model was built (Linux). Images are small, so that it is the weights' memory and not the features'. The C
library is told to give freed memory back (it would keep the modules' weights in pieces, for the next step), which
makes steps slower; ``--keep_freed`` leaves it as it is.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.fsdp import FSDPReplica, apply_fsdp, units
from sat_vg.backbone_finetuning.training.fsdp_tensors import local_shard
from sat_vg.backbone_finetuning.training.optim import build_optimizer, set_learning_rate
from sat_vg.backbone_finetuning.training.replicas import DataParallelReplica, Replica
from sat_vg.backbone_finetuning.utils.cores import usable_cores
from sat_vg.backbone_finetuning.utils.ranks import Ranks, joined

STEPS = 4
COLUMNS = ("weights", "gradients", "optimizer", "together", "before the model", "peak resident", "seconds a step")
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}


def num_bytes(tensors: list[Tensor]) -> int:
    return sum(local_shard(tensor).numel() * tensor.element_size() for tensor in tensors)


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(2**10 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(kind: str, backbone: str, image_size: int, ranks: Ranks) -> tuple[float, ...]:
    """Bytes of each column, and seconds, of this process."""
    device = torch.device("cpu")
    before = resident("VmRSS")
    model = FineTuneModel(backbone, 21, pretrained=False, image_size=image_size)
    if kind == "in shards":
        apply_fsdp(model, device, ranks)
        replica: Replica = FSDPReplica(model, device, ranks)
    else:
        replica = DataParallelReplica(model, model.training_outputs, ranks)
    optimizer = build_optimizer(model, "adamw", 1e-3, 0.9)
    model.train()
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(ranks.rank))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    replica.enter_phase()
    for step in range(STEPS):
        if step == 1:
            ranks.all_gather(None)
            clock = time.perf_counter()
        sum(weight * logits.sum() for weight, logits in replica.outputs(images, 0)).backward()
        parameters = list(model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        set_learning_rate(optimizer, 1e-6)
        optimizer.step()
        states = [tensor for of in optimizer.state.values() for tensor in of.values() if tensor.ndim]
        found = [num_bytes([p.detach() for p in parameters]), num_bytes(gradients), num_bytes(states)]
        del gradients
        optimizer.zero_grad(set_to_none=True)
    seconds = (time.perf_counter() - clock) / (STEPS - 1)
    if ranks.is_first:
        print(f"{kind}: {sum(p.numel() for p in parameters) / 1e6:.1f} M weights, {len(units(model))} units")
    return (*found, sum(found), before, resident("VmHWM"), seconds)


def show(kind: str, backbone: str, image_size: int) -> None:
    """What one of the processes does."""
    torch.set_num_threads(1)
    with joined() as ranks:
        rows = ranks.all_gather(measure(kind, backbone, image_size, ranks))
        if not ranks.is_first:
            return
        for rank, (*sizes, seconds) in enumerate(rows):
            print(
                f"| {kind} | {rank} | " + " | ".join(f"{size / 2**20:.0f}" for size in sizes) + f" | {seconds:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--backbone", default="vit_b_16")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--keep_freed", action="store_true")
    parser.add_argument("--kind", choices=("copies", "in shards"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        show(options.kind, options.backbone, options.image_size)
        return
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {usable_cores()} cores; MiB")
    print("| | process | " + " | ".join(COLUMNS) + " |\n|---|---:|" + "---:|" * len(COLUMNS), flush=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for kind in ("copies", "in shards"):
        command = [*launcher, str(options.processes), __file__, "--kind", kind, "--backbone", options.backbone]
        settings = {**os.environ, **({} if options.keep_freed else GIVES_BACK)}
        subprocess.run([*command, "--image_size", str(options.image_size)], check=True, env=settings)


if __name__ == "__main__":
    main()
