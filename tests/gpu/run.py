"""Checks and rates of this library on one device, with nothing but drawn images: under six minutes on one GPU.

    python tests/gpu/run.py --out gpu.json                    # `make gpu`
    python tests/gpu/run.py --device cpu --quick --out cpu.json   # the same on tiny networks, without a GPU

Every check has a name and ends as "ok", "failed" or "skipped", with a reason; exit code 1 if one failed. The JSON
file holds results, rates, seconds and versions. No network is needed.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import steps
from whole_commands import KEEP_MEMORY, draw

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.artifact import current_versions
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


@dataclass(frozen=True)
class Bench:
    """Where the checks run.

    Attributes:
        device: of torch.
        is_quick: tiny networks and images.
        folder: for everything.
    """

    device: torch.device
    is_quick: bool
    folder: Path

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU of CUDA."""
        return self.device.type == "cuda"

    def images(self, size: int) -> Path:
        """A folder of drawn images with splits, made once."""
        folder = self.folder / f"images_{size}"
        if not folder.exists():
            train, val = (40, 20) if self.is_quick else (512, 64) if size > 64 else (128, 32)
            draw(folder, train, val, size)
        return folder

    def settings(self, name: str, **changes: Any) -> dict[str, Any]:
        """Settings of a small training in a folder of its own."""
        return {
            "dataset_path": str(self.images(32)), "backbone": "resnet18", "pretrained": False, "image_size": 32,
            "batch_size": 10, "num_epochs": 2, "warmup_epochs": 0.0, "learning_rate": 1e-3, "log_every": 1,
            "early_stopping_patience": 0, "on_duplicates": "ignore", "device": str(self.device), "num_workers": 0,
            "log_dir": str(self.folder / name / "logs"), "checkpoint_dir": str(self.folder / name / "ckpt"),
            **changes,
        }  # fmt: skip

    def losses(self, name: str, **changes: Any) -> list[float]:
        """Losses of the first epoch's steps, of a whole run."""
        finetune(FinetuneConfig(**self.settings(name, **changes)))
        lines = (self.folder / name / "logs/metrics.jsonl").read_text().splitlines()
        return [
            line["train_loss"] for line in map(json.loads, lines) if "gradient_norm" in line and line["epoch"] == 1
        ]

    def training(self, name: str, **changes: Any):
        """The components of such a training, and its outputs."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return steps.prepared(FinetuneConfig(**self.settings(name, **changes)), folder)


class Skipped(Exception):
    """A check that says nothing here, and why."""


def needs_cuda(bench: Bench) -> None:
    if not bench.is_cuda:
        raise Skipped("needs CUDA")


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
    plain = bench.losses("not_compiled", mixed_precision=False, tf32=False, num_epochs=1)
    return {"largest difference": largest_difference(
        plain[:3], bench.losses("compiled", mixed_precision=False, tf32=False, num_epochs=1, compile=True)[:3], 0.02
    )}  # fmt: skip


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


def step_rates(backbone: str) -> Callable[[Bench], dict[str, Any]]:
    """Images a second of our epoch, of the bare step, and of timm's network in the same step, if timm is there."""

    def measure(bench: Bench) -> dict[str, Any]:
        name, size, batch_size = (backbone, 224, 64) if not bench.is_quick else ("resnet18", 32, 8)
        if bench.is_quick and backbone != "resnet50":
            raise Skipped("left out by --quick")
        if bench.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        rows = steps.measure(
            str(bench.images(size)), name, size, batch_size, steps=8 if not bench.is_quick else 2,
            repeats=3 if not bench.is_quick else 1, device=str(bench.device), on_duplicates="ignore",
        )  # fmt: skip
        ours, bare = (statistics.median(rows[who]) for who in ("ours", "bare"))
        found = {
            "network": name,
            "precision": rows["precision"],
            "ours": ours,
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
    clock, count = 0.0, 8 if not bench.is_quick else 2
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


def synchronise(bench: Bench) -> None:
    if bench.is_cuda:
        torch.cuda.synchronize()


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
    "whole epochs": whole_epochs,
}


def run_one(name: str, work: Callable[[Bench], dict[str, Any]], bench: Bench, deadline: float) -> dict[str, Any]:
    """One check or rate: how it ended, its figures, its seconds."""
    began = time.monotonic()
    if began > deadline:
        return {"result": "skipped", "reason": "no time was left", "seconds": 0.0}
    try:
        found: dict[str, Any] = {"result": "ok", **work(bench)}
    except Skipped as reason:
        found = {"result": "skipped", "reason": str(reason)}
    except Exception as error:  # noqa: BLE001 - the others shall still run; the JSON and the exit code tell
        found = {"result": "failed", "reason": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {**found, "seconds": round(time.monotonic() - began, 2)}


def main(arguments: list[str] | None = None) -> int:
    """Run all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks and images")
    parser.add_argument("--only", nargs="+", choices=(*CHECKS, *RATES), default=(*CHECKS, *RATES))
    parser.add_argument("--minutes", type=float, default=5.5, help="nothing is begun after so many")
    parser.add_argument("--out", default="gpu.json")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU of CUDA here; --device cpu --quick runs what needs none", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAT_VG_CACHE"] = str(Path(folder) / "cache")
        bench = Bench(torch.device(options.device), options.quick, Path(folder))
        found = {}
        for name, work in {**CHECKS, **RATES}.items():
            if name in options.only:
                found[name] = run_one(name, work, bench, began + 60 * options.minutes)
                print(f"{name}: {json.dumps({k: v for k, v in found[name].items() if k != 'trace'})}", flush=True)
    device = torch.cuda.get_device_name(bench.device) if bench.is_cuda else platform.processor() or platform.machine()
    versions = {**current_versions(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    report = {
        "device": device,
        "versions": versions,
        "quick": options.quick,
        "seconds": round(time.monotonic() - began, 1),
        "checks": {name: found[name] for name in CHECKS if name in found},
        "rates": {name: found[name] for name in RATES if name in found},
    }
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}, after {report['seconds']:.0f} s")
    return int(any(one["result"] == "failed" for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
