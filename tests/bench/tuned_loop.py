"""The loop that a good engineer would write for this machine: the second opponent beside ``plain_loop.py``.

    python tests/bench/tuned_loop.py TRAIN VAL --backbone resnet50 --train full --epochs 1 --size 224

Images are decoded by torchvision into uint8, augmented by transforms v2, and computed in bf16 (where the processor
has it), channels_last, with fused AdamW; without worker processes on a CPU, with eight on a GPU (``--device cuda``).
For a CPU, start it with large ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_``, so that glibc keeps freed
memory. Validates after each epoch, saves the best model, prints one JSON line.
"""

import argparse
import json
import resource
import time

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

NORMALISE = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
HAS_BF16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def trained_part(model: nn.Module, what: str) -> nn.Module:
    """The part of a model that is trained, of which only ResNets have parts; the rest stays in eval mode."""
    if what == "full":
        return model
    return {"last_layers": nn.ModuleList([model.layer4, model.fc]), "linear_probe": model.fc}[what]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_folder")
    parser.add_argument("val_folder")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--train", choices=("full", "last_layers", "linear_probe"), default="full")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", default="tuned_best.pt")
    options = parser.parse_args()
    began, device, is_cuda = time.perf_counter(), options.device, options.device.startswith("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    crop = v2.RandomResizedCrop(options.size, scale=(0.5, 1.0), antialias=True)
    augmented = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.ColorJitter(0.2, 0.2, 0.2)])
    plain = v2.Compose([v2.Resize(options.size, antialias=True), v2.CenterCrop(options.size)])

    def read(path: str) -> torch.Tensor:
        return decode_image(path, mode=ImageReadMode.RGB)

    train, val = (
        DataLoader(
            ImageFolder(folder, transform, loader=read),
            options.batch_size,
            shuffle=transform is augmented,
            num_workers=8 if is_cuda else 0,
            pin_memory=is_cuda,
            persistent_workers=is_cuda,
        )
        for folder, transform in ((options.train_folder, augmented), (options.val_folder, plain))
    )
    normalise = v2.Compose(NORMALISE)
    model = torchvision.models.get_model(options.backbone, num_classes=len(train.dataset.classes))
    model = model.to(device, memory_format=torch.channels_last)
    part = trained_part(model, options.train)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in part.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.AdamW(part.parameters(), lr=1e-3, fused=True)
    best, step_seconds = 0.0, 0.0

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=HAS_BF16):
            images = images.to(device, non_blocking=True)
            return model(normalise(images).contiguous(memory_format=torch.channels_last)).float()

    for _ in range(options.epochs):
        model.eval()
        part.train()
        clock = time.perf_counter()
        for images, labels in train:
            loss = nn.functional.cross_entropy(logits(images), labels.to(device, non_blocking=True))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if is_cuda:
            torch.cuda.synchronize()
        step_seconds += time.perf_counter() - clock
        model.eval()
        with torch.inference_mode():
            hits = sum((logits(images).argmax(1).cpu() == labels).sum().item() for images, labels in val)
        if hits / len(val.dataset) >= best:
            best = hits / len(val.dataset)
            torch.save(model.state_dict(), options.save)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - began
    print(json.dumps({"accuracy": best, "seconds": seconds, "step_seconds": step_seconds, "peak_gib": peak}))


if __name__ == "__main__":
    main()
