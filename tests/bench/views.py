"""What `--cached_views` costs in accuracy against fresh crops in every epoch, on a few images of each class.

    python tests/bench/views.py UCMerced --train 20 --val 30 --size 96 --weights mobilenet_v2-imagenet.pth

Of each class folder the first images of an order drawn by seed 0 are training images, the next ones validation
images, the same for all seeds. MobileNetV2, 10 epochs. Prints one JSON line for each run.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training.run import finetune

STRATEGIES = {
    "last_layers": ((0, 2, 4), {}),
    "linear_probe": ((0, 2), {"probe_solver": "sgd", "learning_rate": 3e-3}),
}


def draw(root: Path, folder: Path, train: int, val: int) -> None:
    """Copies of some images of each class, in folders of splits."""
    generator = random.Random(0)
    for class_folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images = sorted(class_folder.iterdir())
        generator.shuffle(images)
        for place, image in enumerate(images[: train + val]):
            target = folder / ("train" if place < train else "val") / class_folder.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--train", type=int, default=20, help="images of each class")
    parser.add_argument("--val", type=int, default=30, help="images of each class")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as around:
        os.environ["SAT_VG_CACHE"] = f"{around}/cache"
        draw(options.root, Path(around, "images"), options.train, options.val)
        for seed in options.seeds:
            for strategy, (choices, settings) in STRATEGIES.items():
                for views in choices:
                    folder, clock = f"{around}/{strategy}_{views}_{seed}", time.process_time()
                    config = FinetuneConfig(
                        dataset_path=f"{around}/images", backbone="mobilenet_v2", weights=options.weights,
                        image_size=options.size, strategy=strategy, num_epochs=10, seed=seed, cached_views=views,
                        early_stopping_patience=0, on_duplicates="warn", log_dir=f"{folder}/logs",
                        checkpoint_dir=f"{folder}/ckpt", **settings,
                    )  # fmt: skip
                    metrics = finetune(config).metrics
                    row = {"strategy": strategy, "views": views, "seed": seed, "cpu": time.process_time() - clock}
                    print(json.dumps({**row, **metrics}), flush=True)


if __name__ == "__main__":
    main()
