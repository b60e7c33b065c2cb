"""The memory of a training step as ``sat-vg recommend`` computes it, against that of real steps in a fresh process.

    python tests/bench/step_memory.py --backbones resnet18 mobilenet_v2 --batch_size 16 --image_size 224

Measured is the growth of the process from before the network is built to the height of the first three steps, with
the settings of a training (bf16 where the processor has it, channels-last, AdamW, freed memory kept). With
``--device cuda`` it is what torch allocated on the GPU.
"""

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path

BACKBONES = ("resnet18", "resnet50", "mobilenet_v2", "convnext_tiny", "vit_b_16")


def measured(backbone: str, batch_size: int, image_size: int, device_name: str) -> int:
    """Bytes of real steps, in this process, which has done nothing yet."""
    import torch

    from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
    from sat_vg.backbone_finetuning.training.optim import build_optimizer, set_learning_rate
    from sat_vg.backbone_finetuning.utils.allocator import release_freed_memory
    from sat_vg.backbone_finetuning.utils.precision import choose_precision, set_up_process

    device = torch.device(device_name)
    set_up_process(device, num_threads=None, keeps_freed_memory=None, tf32=True)
    precision = choose_precision(device, mixed_precision=True)

    def steps(name: str, count: int, size: int) -> None:
        model = FineTuneModel(name, 21, pretrained=False, image_size=size).train()
        precision.place_model(model)
        optimizer = build_optimizer(model, "adamw", 1e-3, 0.9)
        targets = torch.zeros(count, dtype=torch.int64, device=device)
        for _ in range(3):
            images = precision.place_images(torch.zeros(count, 3, size, size, device=device))
            with precision.autocast():
                outputs = model.training_outputs(images)
            losses = (share * torch.nn.functional.cross_entropy(each.float(), targets) for share, each in outputs)
            sum(losses, start=torch.zeros((), device=device)).backward()
            set_learning_rate(optimizer, 1e-4)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    steps("custom_cnn", 2, 32)  # a tiny network: what libraries take once is no memory of a step
    gc.collect()
    release_freed_memory()
    before = now("VmRSS") if device.type == "cpu" else torch.cuda.memory_allocated()
    steps(backbone, batch_size, image_size)
    return (now("VmHWM") if device.type == "cpu" else torch.cuda.max_memory_allocated()) - before


def now(name: str) -> int:
    """A line of this process's status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 2**10


def predicted(backbone: str, batch_size: int, image_size: int, device_name: str) -> int:
    """Bytes of a step by the formula."""
    import torch
    from counted_memory import measure_step_memory, without_values

    from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
    from sat_vg.backbone_finetuning.utils.precision import choose_precision

    model = FineTuneModel(backbone, 21, pretrained=False, image_size=image_size)
    precision = choose_precision(torch.device(device_name), mixed_precision=True)
    precision.place_model(model)
    with without_values(model):
        return measure_step_memory(model, precision).of_batch(batch_size)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), metavar="NAME")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only_measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    sizes = (given.batch_size, given.image_size, given.device)
    if given.only_measure:
        print(measured(given.backbones[0], *sizes))
        return
    print("| backbone | measured, MiB | predicted, MiB | predicted / measured |\n|---|---:|---:|---:|")
    ratios = {}
    for name in given.backbones:
        words = [sys.executable, __file__, "--only_measure", "--backbones", name, "--device", given.device]
        words += ["--batch_size", str(given.batch_size), "--image_size", str(given.image_size)]
        printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        found = {"measured": int(printed), "predicted": predicted(name, *sizes)}
        ratios[name] = found["predicted"] / found["measured"]
        cells = (f"{found['measured'] / 2**20:.0f}", f"{found['predicted'] / 2**20:.0f}", f"{ratios[name]:.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
