"""Where checks and rates of one device run: its folder, drawn images, small trainings."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import steps
from whole_commands import draw

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training.run import finetune


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
            train, val = (40, 20) if self.is_quick else (2560, 64) if size > 64 else (128, 32)
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


def synchronise(bench: Bench) -> None:
    if bench.is_cuda:
        torch.cuda.synchronize()
