"""Checks of what this library promises, on one device."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from device_bench import Bench, needs_cuda

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.fsdp import FSDPReplica, apply_fsdp
from sat_vg.backbone_finetuning.training.linear_probe import solve_linear_probe
from sat_vg.backbone_finetuning.training.loop import train_epoch, train_step
from sat_vg.backbone_finetuning.training.optim import build_optimizer
from sat_vg.backbone_finetuning.training.phases import StrategyInputs, full
from sat_vg.backbone_finetuning.training.replicas import DataParallelReplica
from sat_vg.backbone_finetuning.training.run import finetune
from sat_vg.backbone_finetuning.utils.ranks import DistributedProcess
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest


def largest_difference(one: list[float], two: list[float], limit: float) -> float:
    """The largest relative difference of two courses; AssertionError where it exceeds the limit."""
    difference = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(one, two, strict=True))
    assert difference <= limit, f"the losses differ by {100 * difference:.1f} %: {one} and {two}"
    return difference


def formats(bench: Bench) -> dict[str, Any]:
    """bf16, fp16 and channels_last against fp32 in the plain layout: the same first steps, but for rounding."""
    small = {"learning_rate": 1e-4, "num_epochs": 1}  # so that rounding is not magnified from step to step
    plain = bench.losses("fp32", mixed_precision=False, channels_last=False, tf32=False, **small)
    wanted = {
        "fp32 channels_last": ({"mixed_precision": False, "channels_last": True, "tf32": False}, 0.02),
        "bf16": ({"autocast_dtype": "bf16", "channels_last": False}, 0.1),
        "bf16 channels_last": ({"autocast_dtype": "bf16", "channels_last": True}, 0.1),
    }
    if bench.is_cuda:
        wanted["fp16"] = ({"autocast_dtype": "fp16"}, 0.1)
    return {
        name: largest_difference(plain[:3], bench.losses(name.replace(" ", "_"), **changes, **small)[:3], limit)
        for name, (changes, limit) in wanted.items()
    }


def fp16_overflow(bench: Bench) -> dict[str, Any]:
    """Loss scaling that begins far too high leaves steps out, comes down, and trains on."""
    needs_cuda(bench)
    training, outputs = bench.training("overflow", autocast_dtype="fp16")
    training = replace(training, scaler=torch.amp.GradScaler("cuda", init_scale=2.0**24))
    state, phase = RunState(), full(StrategyInputs(training.model.stage_names, 1))[0]
    with outputs.tracker, InterruptRequest() as interrupt:
        train_epoch(training, phase, training.sources.image_source(), outputs, state, interrupt)
    assert 0 < state.skipped_steps < training.plan.num_batches, f"{state.skipped_steps} steps were left out"
    assert all(bool(weights.isfinite().all()) for weights in training.model.parameters())
    return {"steps left out": state.skipped_steps, "scale": training.scaler.get_scale()}


def compiled(bench: Bench) -> dict[str, Any]:
    """torch.compile: the same course."""
    needs_cuda(bench)
    # Of 64 pixels: where the last map is a single place, its layout is not unique, and torch's own check stumbles.
    given = {"dataset_path": str(bench.images(64)), "image_size": 64, "mixed_precision": False, "tf32": False}
    plain = bench.losses("not_compiled", num_epochs=1, **given)
    compiled = bench.losses("compiled", num_epochs=1, compile=True, **given)
    return {"largest difference": largest_difference(plain[:3], compiled[:3], 0.02)}


def resume_after_kill(bench: Bench) -> dict[str, Any]:
    """SIGKILL within an epoch, and the same command again: the weights of a run that was not killed.

    To the bit on a CPU; on a GPU within the noise of kernels that add up in any order.
    """
    flags = {"save_every_steps": 1, "save_every_minutes": 0.0, "num_epochs": 3}
    finetune(FinetuneConfig(**bench.settings("whole", **flags)))
    settings = bench.settings("killed", **flags)
    command = [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *FinetuneConfig(**settings).as_flags()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = bench.folder / "killed/ckpt/last.pt"
    while process.poll() is None and not state.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    at_step = torch.load(state, weights_only=True)["state"]["step"]
    assert at_step < 3 * 4, "the run had ended before it was killed"
    finetune(FinetuneConfig(**settings))
    networks = [
        torch.load(bench.folder / name / "ckpt/last.pt", weights_only=True, map_location="cpu")["network"]
        for name in ("whole", "killed")
    ]
    pairs = [(value.double(), networks[1][name].double()) for name, value in networks[0].items()]
    largest = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in pairs)
    assert largest <= (0.05 if bench.is_cuda else 0), f"the weights differ by {largest}"
    return {"killed after step": at_step, "largest difference": largest}


def exact_probe(bench: Bench) -> dict[str, Any]:
    """The exact linear probe on the device and on the CPU: the same optimum."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.randn(200, 16, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 16)
    found = [
        solve_linear_probe(features.to(device), labels.to(device), 4, torch.Generator().manual_seed(1))
        for device in (torch.device("cpu"), bench.device)
    ]
    assert found[0].strength == found[1].strength
    difference = float((found[0].weight - found[1].weight).abs().max() / found[0].weight.abs().max())
    assert difference < 1e-3, f"the weights differ by {difference}"
    return {"largest difference": difference}


@torch.inference_mode()
def extractor(bench: Bench) -> dict[str, Any]:
    """The extractor's last map is that of torchvision's network cut before its pooling."""
    name = "resnet18" if bench.is_quick else "resnet50"
    model = FineTuneModel(name, 10, pretrained=False).to(bench.device).eval()
    whole = torchvision.models.get_model(name, num_classes=10).to(bench.device).eval()
    whole.load_state_dict(model.network.state_dict())
    images = torch.randn(2, 3, 96, 128, device=bench.device)
    ours = model.get_feature_extractor()(images)["layer4"]
    theirs = torch.nn.Sequential(*list(whole.children())[:-2])(images)
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    assert difference <= (1e-3 if bench.is_cuda else 0), f"the maps differ by {difference}"
    return {"largest difference": difference}


def one_rank(bench: Bench, name: str, replica_of: Callable[[Any, DistributedProcess], Any]) -> dict[str, Any]:
    """Three steps with the means of many processes, in one, against those of a process alone."""
    plain, _ = bench.training(f"{name}_alone", mixed_precision=False, tf32=False, channels_last=False)
    many, _ = bench.training(name, mixed_precision=False, tf32=False, channels_last=False)
    backend = "cpu:gloo,cuda:nccl" if bench.is_cuda else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.new_group([0], backend="gloo")
        ranks = DistributedProcess(group, 0, 1)
        replica = replica_of(many, ranks)
        replica.enter_phase()
        many = replace(many, replica=replica, ranks=ranks, optimizer=build_optimizer(many.model, "adamw", 0.0, 0.9))
        plain = replace(plain, optimizer=build_optimizer(plain.model, "adamw", 0.0, 0.9))
        courses = []
        for training in (plain, many):
            training.model.train()
            source = training.sources.image_source()
            batches = list(source.training(0, 0))[:3]
            courses.append([
                float(train_step(training, source, batch, 1e-3, step).loss) for step, batch in enumerate(batches)
            ])  # fmt: skip
    finally:
        dist.destroy_process_group()
    return {"backend": backend, "largest difference": largest_difference(*courses, 0.01)}


def ddp(bench: Bench) -> dict[str, Any]:
    """DDP on one rank, over NCCL on a GPU."""
    return one_rank(
        bench,
        "ddp",
        lambda training, ranks: DataParallelReplica(training.model, training.model.training_outputs, ranks),
    )


def fsdp(bench: Bench) -> dict[str, Any]:
    """FSDP2 on one rank."""

    def replica(training: Any, ranks: DistributedProcess) -> FSDPReplica:
        apply_fsdp(training.model, bench.device, ranks)
        return FSDPReplica(training.model, bench.device, ranks)

    return one_rank(bench, "fsdp", replica)


CHECKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "formats": formats,
    "fp16 overflow": fp16_overflow,
    "compile": compiled,
    "resume after SIGKILL": resume_after_kill,
    "exact probe": exact_probe,
    "extractor = torchvision": extractor,
    "DDP on one rank": ddp,
    "FSDP2 on one rank": fsdp,
}
