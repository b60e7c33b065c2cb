"""Images a second on one device."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import steps
from device_bench import Bench, Skipped, synchronise
from whole_commands import KEEP_MEMORY

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training.run import finetune


def step_rates(backbone: str, **settings: Any) -> Callable[[Bench], dict[str, Any]]:
    """Images a second of our epoch, of the bare step, and of timm's network in the same step, if timm is there."""

    def measure(bench: Bench) -> dict[str, Any]:
        name, size, batch_size = (backbone, 224, 64) if not bench.is_quick else ("resnet18", 32, 8)
        if bench.is_quick and (backbone != "resnet50" or settings):
            raise Skipped("left out by --quick")
        if bench.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        rows = steps.measure(
            str(bench.images(size)), name, size, batch_size, steps=40 if not bench.is_quick else 2,
            repeats=3 if not bench.is_quick else 1, device=str(bench.device), on_duplicates="ignore", **settings,
        )  # fmt: skip
        ours, step, bare = (statistics.median(rows[who]) for who in ("ours", "our step", "bare"))
        found = {
            "network": name,
            "precision": rows["precision"],
            "ours": ours,
            "our step, one batch": step,
            "bare step": bare,
            "ratio": ours / bare,
        }
        if bench.is_cuda:
            found["peak GPU memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        found["timm's network, bare step"] = timm_rate(bench, name, size, batch_size)
        return found

    return measure


def timm_rate(bench: Bench, backbone: str, size: int, batch_size: int) -> float | str:
    """Images a second of a bare step on timm's network of that kind."""
    try:
        import timm
    except ImportError:
        return "timm is not installed"
    name = {"vit_b_16": "vit_base_patch16_224", "mobilenet_v2": "mobilenetv2_100"}.get(backbone, backbone)
    model = timm.create_model(name, num_classes=10).to(bench.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    images = torch.randn(batch_size, 3, size, size, device=bench.device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,), device=bench.device)
    clock, count = 0.0, 40 if not bench.is_quick else 2
    for step in range(count + 2):
        if step == 2:  # the first ones warm up
            synchronise(bench)
            clock = time.perf_counter()
        with torch.autocast(bench.device.type, torch.bfloat16):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    synchronise(bench)
    return batch_size * count / (time.perf_counter() - clock)


def whole_epochs(bench: Bench) -> dict[str, Any]:
    """Whole epochs of ours and of the tuned plain loop: images a second of the second epoch's steps."""
    size, name = (32, "resnet18") if bench.is_quick else (224, "resnet50")
    images = bench.images(size)
    finetune(FinetuneConfig(**bench.settings(
        "epochs", dataset_path=str(images), backbone=name, image_size=size, batch_size=32, num_workers=None
    )))  # fmt: skip
    lines = map(json.loads, (bench.folder / "epochs/logs/metrics.jsonl").read_text().splitlines())
    ours = [line["images_per_second"] for line in lines if "val_loss" in line]
    tuned = Path(steps.__file__).with_name("tuned_loop.py")
    command = [sys.executable, str(tuned), str(images / "train"), str(images / "val"), "--backbone", name,
               "--epochs", "2", "--size", str(size), "--device", str(bench.device)]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=bench.folder, env={**os.environ, **KEEP_MEMORY}, check=True
    )
    seconds = json.loads(done.stdout)["step_seconds"]
    num_images = sum(1 for _ in (images / "train").rglob("*.jpg"))
    return {"network": name, "ours, by epoch": ours, "tuned plain loop, both epochs": 2 * num_images / seconds}


def pipeline(bench: Bench) -> dict[str, Any]:
    """Images a second from files to the device, without a model."""
    size = 32 if bench.is_quick else 224
    training, outputs = bench.training(
        "pipeline",
        dataset_path=str(bench.images(size)),
        image_size=size,
        num_workers=None,
        cache="disk",
        batch_size=32,
    )
    with outputs.tracker:
        source, rates = training.sources.image_source(), []
        for epoch in range(3):
            clock, count = time.perf_counter(), 0
            for batch in source.training(epoch, 0):
                count += len(source.values(batch.to(bench.device)))
            synchronise(bench)
            rates.append(count / (time.perf_counter() - clock))
    return {"by epoch": rates}


RATES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "input pipeline": pipeline,
    "ResNet-50 at 224": step_rates("resnet50"),
    "ViT-B/16 at 224": step_rates("vit_b_16"),
    "MobileNetV2 at 224": step_rates("mobilenet_v2"),
    "ResNet-50 at 224, compiled": step_rates("resnet50", compile=True),
    "whole epochs": whole_epochs,
}
