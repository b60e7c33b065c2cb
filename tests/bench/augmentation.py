"""A picture of every augmentation on images of your own: one row each, the image as it is at the left.

    python tests/bench/augmentation.py --images DIR/forest/1.jpg DIR/harbor/7.jpg … --out augmentation.png

and, with ``--times``, how many images a second each makes on one core.
"""

import argparse
import time
from pathlib import Path

import torch
from PIL import Image

from sat_vg.backbone_finetuning.data.loading.augmentation import PRESETS
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.reports.record_pictures import draw_image_grid
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator


def rows(images: list[torch.Tensor], size: int, columns: int) -> list[tuple[str, torch.Tensor]]:
    """The images with their titles, row by row."""
    plain = Preprocessing(image_size=size).geometry()
    found = []
    for row, (name, preset) in enumerate(PRESETS.items()):
        image, transform = images[row % len(images)], preset.build(size, "bilinear")
        found.append(("none", plain(image)))
        for view in range(columns - 1):
            seed_default_generator(derive_seed(0, Purpose.SAMPLE, view, row))
            found.append((name if view == 0 else "", transform(image)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--out", default="augmentation.png")
    parser.add_argument("--size", type=int, default=128, help="of the images, in pixels")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--dpi", type=int, default=80)
    parser.add_argument("--colours", type=int, default=0, help="of a PNG with a palette, which is smaller; 0: all")
    parser.add_argument("--times", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = [decode_rgb(path) for path in options.images]
    titles, pictures = zip(*rows(images, options.size, options.columns), strict=True)
    grid = torch.stack(pictures).permute(0, 2, 3, 1).numpy()
    drawn = draw_image_grid(grid, titles, "one image to a row: unchanged, then as drawn for it", options.columns)
    picture = drawn.resize([round(side * options.dpi / 130) for side in drawn.size], Image.Resampling.LANCZOS)
    with atomic_write(Path(options.out)) as file:
        (picture.quantize(options.colours, kmeans=2) if options.colours else picture).save(file, "png", optimize=True)
    print(f"written: {options.out}, {Path(options.out).stat().st_size / 1000:.0f} kB")
    if options.times:
        for name, preset in PRESETS.items():
            transform, count, started = preset.build(options.size, "bilinear"), 0, time.perf_counter()
            while time.perf_counter() - started < 2:
                transform(images[count % len(images)])
                count += 1
            print(f"{name}: {count / (time.perf_counter() - started):.0f} images/s at {options.size} pixels")


if __name__ == "__main__":
    main()
