"""Our epoch against the bare training step on tensors in memory, in one process, in turns.

    python tests/bench/steps.py DIR --backbone mobilenet_v2 --size 224

Both have the same number formats, optimizer, memory format and allocator. The bare step has no data, no augmentation,
no clipping, no learning-rate schedule, no bar and no log. Ours is the loop's own epoch over images of DIR, out of the
cache of decoded images, without validation and saving; "our step" is that of the loop on one batch again and again.
Prints one JSON line.
"""

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training import loop
from sat_vg.backbone_finetuning.training.assembly import assemble
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.image_outputs import BestOutputs
from sat_vg.backbone_finetuning.training.phases import StrategyInputs, full
from sat_vg.backbone_finetuning.training.preparation import check_images, choose_hardware, find_images, image_reader
from sat_vg.backbone_finetuning.training.record import Outputs, SaveSchedule
from sat_vg.backbone_finetuning.training.run_identity import RunIdentity
from sat_vg.backbone_finetuning.training.tracking import FileTracker
from sat_vg.backbone_finetuning.utils.ranks import SingleProcess
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest


def bare(training, batch_size: int, size: int, steps: int) -> float:
    """Images a second of the step that cannot be done without."""
    model, precision = training.model, training.precision
    images = precision.place_images(torch.randn(batch_size, 3, size, size)).to(precision.device)
    labels = torch.randint(model.num_classes, (batch_size,), device=precision.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()

    def step() -> None:
        with precision.autocast():
            logits = model.network(images)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # its state is made here
    clock = time.perf_counter()
    for _ in range(steps):
        step()
    if precision.device.type == "cuda":
        torch.cuda.synchronize()
    return batch_size * steps / (time.perf_counter() - clock)


def our_step(training, steps: int) -> float:
    """Images a second of the loop's step on one batch."""
    source = training.sources.image_source()
    (batch,) = islice(source.training(0, 0), 1)
    training.model.train()
    loop.train_step(training, source, batch, 1e-5, 0)
    clock = time.perf_counter()
    for step in range(steps):
        loop.train_step(training, source, batch, 1e-5, step)
    if training.precision.device.type == "cuda":
        torch.cuda.synchronize()
    return len(batch.indices) * steps / (time.perf_counter() - clock)


def ours(training, outputs: Outputs) -> float:
    """Images a second of the loop's own epoch."""
    phase = full(StrategyInputs(training.model.stage_names, 1))[0]
    state = RunState()
    with InterruptRequest() as interrupt:
        loop.train_epoch(training, phase, training.sources.image_source(), outputs, state, interrupt)
    return state.train_images / state.train_seconds


def measure(
    root: str,
    backbone: str,
    size: int,
    batch_size: int = 32,
    steps: int = 10,
    repeats: int = 5,
    **settings,
) -> dict[str, list[float] | str]:
    """Images a second of the bare step and of our epoch over images of ``root``, in turns; settings as of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = FinetuneConfig(
            dataset_path=root,
            backbone=backbone,
            pretrained=False,
            image_size=size,
            batch_size=batch_size,
            num_epochs=20,
            log_dir=folder,
            **settings,
        )
        training, outputs = prepared(config, Path(folder))
        rows: dict[str, list[float]] = {"bare": [], "our step": [], "ours": []}
        training = _cut(training, steps)
        with outputs.tracker:
            for repeat in range(repeats + 1):
                found = {
                    "bare": bare(training, batch_size, size, steps),
                    "our step": our_step(training, steps),
                    "ours": ours(training, outputs),
                }
                if repeat:  # the first one warms up
                    for name, value in found.items():
                        rows[name].append(value)
    return {**rows, "precision": str(training.precision)}


def prepared(config: FinetuneConfig, folder: Path):
    """The components of a training, and its outputs in a folder; the tracker is for the caller to close."""
    precision = choose_hardware(config)
    images = check_images(config, find_images(config))
    names = images.splits.class_names
    model = FineTuneModel(config.backbone, len(names), False, image_size=config.image_size, seed=config.seed)
    training = assemble(config, images, model, precision, image_reader(config, images), SingleProcess())
    outputs = Outputs(
        folder,
        RunIdentity(config.to_dict(), "", {}),
        1,
        1,
        SaveSchedule(0, 0.0),
        config.log_every,
        FileTracker(folder, RunState()),
        str,
        BestOutputs(len(images.splits.val), model.preprocessing),
    )
    return training, outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num_workers", type=int)
    options = vars(parser.parse_args())
    print(json.dumps(measure(**options)))


def _cut(training, steps: int):
    """The same training with epochs of so many steps, or fewer where there are not as many images."""
    from dataclasses import replace

    plan = training.plan
    plan = replace(plan, num_samples=min(plan.num_samples, steps * plan.batch_size))
    batches = training.sources.batches
    batches.plan = plan
    return replace(training, plan=plan)


if __name__ == "__main__":
    main()
