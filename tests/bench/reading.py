"""Images a second out of the file of decoded images, against decoding them anew, in turns in one process.

    OMP_NUM_THREADS=1 python tests/bench/reading.py DIR --images 400

DIR holds class folders. The file is made in a folder of its own, which is removed in the end; image files and decoded
images are in the page cache, as they are after the first epoch.
"""

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from sat_vg.backbone_finetuning.data.checks.readable import examine_images
from sat_vg.backbone_finetuning.data.loading.augmentation import satellite
from sat_vg.backbone_finetuning.data.reading.decoded_cache import keep_decoded, lay_out
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache


def images_per_second(work: Callable[[str], object], paths: list[str]) -> float:
    started = time.perf_counter()
    for path in paths:
        work(path)
    return len(paths) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    splits = load_class_folders(options.folder)
    paths = random.Random(0).sample(splits.train.paths, min(options.images, len(splits.train)))
    transform = satellite(options.image_size, "bilinear")
    examined = examine_images(paths)
    ways: dict[str, Callable[[Tensor], object]] = {
        "read, every byte touched": torch.clone,
        f"read and augmented to {options.image_size}": transform,
    }
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        layout = lay_out(paths, examined.contents, examined.sizes)
        read, note = keep_decoded("disk", layout, BoundedCache(Path(folder), 2**40))
        print(str(note).replace(folder, "a folder"))
        for name, after in ways.items():
            rounds = [
                [images_per_second(lambda path, of=of: after(of(path)), paths) for of in (decode_rgb, read)]  # noqa: B023
                for _ in range(options.rounds)
            ]
            decoded, kept = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(b / a for a, b in rounds)
            print(f"{name}: decoded {decoded:.0f} images/s, kept {kept:.0f} images/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
