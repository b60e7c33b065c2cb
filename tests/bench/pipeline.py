"""Images a second on one core, from the file to what the loader hands over: in turns.

python tests/bench/pipeline.py DIR
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.loading.augmentation import satellite
from sat_vg.backbone_finetuning.data.loading.loaders import ImageDataset
from sat_vg.backbone_finetuning.training.preparation import check_images, find_images, image_reader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = FinetuneConfig(dataset_path=options.root, log_dir=str(Path(folder) / "logs"), cache="disk")
        images = check_images(config, find_images(config))
        transform = satellite(options.size, "bilinear")
        from_files = ImageDataset(images.splits.train, transform, 0)
        decoded = ImageDataset(images.splits.train, transform, 0, image_reader(config, images))
    plain = transforms.Compose(
        [
            transforms.RandomResizedCrop(options.size, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    paths = images.splits.train.paths
    work = {
        "plain": lambda index: plain(Image.open(paths[index]).convert("RGB")),
        "ours": lambda index: from_files[0, index],
        "cached": lambda index: decoded[0, index],
    }
    found: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(options.repeats + 1):
        for name, take in work.items():
            clock = time.perf_counter()
            for index in range(options.images):
                take((index * 7) % len(paths))
            if repeat:  # the first one warms up
                found[name].append(options.images / (time.perf_counter() - clock))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
