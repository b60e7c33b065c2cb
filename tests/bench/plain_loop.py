"""A training loop as people write it, to be measured against: ImageFolder, PIL, fp32, two workers, model.train().

    python tests/bench/plain_loop.py DIR --backbone resnet50 --train full --epochs 1

The split is ours, so that accuracies can be compared; everything else is what tutorials show. Prints one JSON line.
"""

import argparse
import json
import resource
import time

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

NORMALISE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build(backbone: str, num_classes: int, weights: str | None) -> nn.Module:
    model = torchvision.models.get_model(backbone, weights=None)
    if weights:
        model.load_state_dict(torch.load(weights, weights_only=True))
    if backbone.startswith("resnet"):
        model.fc = nn.Linear(model.fc.in_features, num_classes)
    else:
        model.classifier[-1] = nn.Linear(model.classifier[-1].in_features, num_classes)
    return model


def trained_names(backbone: str, num_classes: int, what: str) -> set[str]:
    """The same parameters as the strategy of that name trains."""
    model = FineTuneModel(backbone, num_classes, pretrained=False)
    stages = {"full": len(model.stages), "linear_probe": 0, "last_layers": 1}[what]
    model.set_trainable(model.stage_names[len(model.stages) - stages :])
    return {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}


def loaders(root: str, size: int, batch_size: int, seed: int) -> tuple[DataLoader, DataLoader, int]:
    splits = load_class_folders(root, seed=seed)
    augmented = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2),
            transforms.ToTensor(),
            NORMALISE,
        ]
    )
    plain = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor(), NORMALISE])
    found = []
    for split, transform in ((splits.train, augmented), (splits.val, plain)):
        folder = ImageFolder(root, transform)
        place = {path: index for index, (path, _) in enumerate(folder.samples)}
        subset = Subset(folder, [place[path] for path in split.paths])
        found.append(DataLoader(subset, batch_size, shuffle=transform is augmented, num_workers=2))
    return found[0], found[1], len(splits.class_names)


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    hits = count = 0
    with torch.no_grad():
        for images, labels in loader:
            hits += (model(images).argmax(1) == labels).sum().item()
            count += len(labels)
    return hits / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--weights")
    parser.add_argument("--train", choices=("full", "linear_probe", "last_layers"), default="full")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--max_steps", type=int, help="stop the only epoch after so many steps, the first two untimed"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    torch.manual_seed(options.seed)
    train, val, num_classes = loaders(options.root, options.size, options.batch_size, options.seed)
    model = build(options.backbone, num_classes, options.weights)
    trained = trained_names(options.backbone, num_classes, options.train)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options.lr)
    best, images_timed, seconds = 0.0, 0, 0.0
    for _ in range(options.epochs):
        model.train()
        clock = time.perf_counter()
        for step, (images, labels) in enumerate(train):
            if step == 2 and options.max_steps:
                clock, images_timed = time.perf_counter(), 0
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            images_timed += len(labels)
            if options.max_steps and step + 1 == options.max_steps:
                break
        seconds += time.perf_counter() - clock
        if not options.max_steps:
            best = max(best, accuracy(model, val))
    print(
        json.dumps(
            {
                "images_per_second": images_timed / seconds,
                "accuracy": best,
                "seconds": time.perf_counter() - began,
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
        )
    )


if __name__ == "__main__":
    main()
