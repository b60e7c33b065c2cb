"""A loss curve to the last digit. A change that claims to change no numbers must leave it as it is.

``make golden`` writes it anew and prints the difference; such a commit says why.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from sat_vg.backbone_finetuning.data.loaders import Batch
from sat_vg.backbone_finetuning.data.mixing import Mixing
from sat_vg.backbone_finetuning.engine.feeds import ImageFeed
from sat_vg.backbone_finetuning.engine.loop import train_step
from sat_vg.backbone_finetuning.engine.losses import CrossEntropy
from sat_vg.backbone_finetuning.engine.micro_batches import MicroBatches
from sat_vg.backbone_finetuning.engine.optim import Schedule, build_optimizer
from sat_vg.backbone_finetuning.engine.precision import Precision
from sat_vg.backbone_finetuning.engine.replicas import OneReplica
from sat_vg.backbone_finetuning.engine.training import Training
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

FILE = Path(__file__).with_name("losses.json")
BACKBONES = ("resnet18", "mobilenet_v2", "vit_b_16")


def environment() -> dict[str, object]:
    return {
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
    }


def losses(backbone: str) -> list[float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = FineTuneModel(backbone, 4, pretrained=False, image_size=32, dropout=0.2, seed=5).train()
        precision = Precision(torch.device("cpu"), torch.float32)
        precision.place_model(model)
        training = Training(
            model=model,
            optimizer=build_optimizer(model, "adamw", 0.05, 0.9),
            scaler=precision.scaler(),
            precision=precision,
            schedule=Schedule("cosine", 1e-3, 0.0, 1, 0.1, 0.0),
            mixing=Mixing(0.4, 1.0, seed=5),
            plan=None,
            feeds=None,
            seed=5,
            loss=CrossEntropy(label_smoothing=0.1),
            gradient_clip=1.0,
            micro_batches=MicroBatches(4),
            replica=OneReplica(model.training_outputs),
        )
        feed, found = ImageFeed(model, precision, batches=None), []
        for step in range(6):
            generator = torch.Generator().manual_seed(step)
            images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
            batch = Batch(images, torch.eye(4)[torch.arange(8) % 4], torch.arange(8))
            rate = training.schedule.at((step + 0.5) / 6, 1)
            found.append(train_step(training, feed, batch, rate, step).loss.item() / 8)
        return found
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_losses_are_those_on_file(backbone):
    kept = json.loads(FILE.read_text())
    if kept["environment"] != environment():  # other versions start and round differently
        pytest.skip(f"the losses on file are of {kept['environment']}, here is {environment()}")
    assert losses(backbone) == kept["losses"][backbone]


if __name__ == "__main__":
    fresh = {"environment": environment(), "losses": {name: losses(name) for name in BACKBONES}}
    before = json.loads(FILE.read_text()) if FILE.exists() else {"environment": {}, "losses": {}}
    for name in BACKBONES:
        print(name, "was", before["losses"].get(name), "is", fresh["losses"][name], file=sys.stderr)
    FILE.write_text(json.dumps(fresh, indent=1) + "\n")
