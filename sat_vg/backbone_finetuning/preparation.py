"""What the commands share that run a model on images: hardware, data, and what can be lost on the way."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks import (
    LEFT_OUT,
    READABLE_IMAGES,
    BadImage,
    require_readable,
)
from sat_vg.backbone_finetuning.data.duplicates import settle_copies
from sat_vg.backbone_finetuning.data.loaders import (
    why_loading_failed,
)
from sat_vg.backbone_finetuning.data.scenes import scenes_folder
from sat_vg.backbone_finetuning.data.sources import Splits, load_class_folders
from sat_vg.backbone_finetuning.engine.precision import (
    Precision,
    choose_device,
    choose_precision,
)
from sat_vg.backbone_finetuning.models.backbones import find_backbone
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import (
    ConfigError,
    DataError,
    DeviceMemoryError,
    LoadingError,
    LostImageError,
)
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.terminal import say


def choose_hardware(config: FinetuneConfig) -> Precision:
    """Device and number formats.

    Raises:
        ConfigError: there is no such device, or no such backbone to put on it.
    """
    find_backbone(config.backbone)
    return choose_precision(choose_device(config.device), config.mixed_precision)


def find_images(config: FinetuneConfig) -> Splits:
    """List the images of the configuration, without opening them.

    Raises:
        DataError: there are none, or their classes do not fit together.
        ConfigError: ``num_classes`` is not their number of classes.
    """
    if config.dataset_path is None:
        say("no --dataset_path DIR was given: training on the built-in scenes, drawn by this program")
    root = scenes_folder() if config.dataset_path is None else expand_home(config.dataset_path)
    splits = load_class_folders(
        root,
        train_split=config.train_split,
        val_split=config.val_split,
        val_fraction=config.val_fraction,
        seed=config.seed,
    )
    say(f"data: {splits.description}")
    if config.num_classes not in (None, len(splits.class_names)):
        raise ConfigError(
            f"num_classes = {config.num_classes}: the images have {len(splits.class_names)} classes; leave it out"
        )
    return splits


def require_images(config: FinetuneConfig, splits: Splits) -> tuple[Splits, list[BadImage]]:
    """Decode every image once, and look for copies.

    Returns:
        The splits that are trained on, and the images that were left out where the configuration says so.

    Raises:
        DataError: images cannot be read, or the same ones lie in more than one split.
    """
    readable = require_readable(
        splits, config.on_bad_image, max_bad_fraction=config.max_bad_fraction, record=cache_folder() / READABLE_IMAGES
    )
    for bad in readable.left_out[:10]:
        say(f"left out {bad.path}: {bad.reason}")
    if len(readable.left_out) > 10:
        say(f"left out {len(readable.left_out) - 10} more; a training lists them in {LEFT_OUT} in log_dir")
    settled, notes = settle_copies(readable.splits, readable.contents, config.on_duplicates)
    for note in notes:
        say(note)
    return settled, readable.left_out


@contextmanager
def explained_losses(config: FinetuneConfig) -> Iterator[None]:
    """Say of what a run can lose on its way (an image, the device's memory) what to do about it."""
    try:
        yield
    except DataError as error:  # one that comes from a worker process carries that process's trace
        reason = str(error).rpartition("DataError: ")[2].strip()
        raise LostImageError(
            f"{reason}. It could be read when the training began; put it back, or remove it and begin anew with "
            "--resume never. The checkpoints from before are untouched"
        ) from None
    except torch.OutOfMemoryError as error:
        smaller = max(1, (config.micro_batch_size or config.batch_size) // 2)
        raise DeviceMemoryError(
            f"the device has too little memory for {config.micro_batch_size or config.batch_size} images at once "
            f"({str(error).splitlines()[0]}). Try --micro_batch_size {smaller}, which keeps --batch_size "
            f"{config.batch_size} by accumulation, or a smaller --image_size"
        ) from error
    except RuntimeError as error:  # torch has no class of its own for what happens to its workers
        lost = why_loading_failed(error)
        if lost is None:
            raise
        raise LoadingError(f"{lost}. The checkpoints are untouched: the same command goes on") from error
