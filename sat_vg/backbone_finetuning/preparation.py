"""What the commands share that run a model on images: hardware, data, and what can be lost on the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks import (
    LEFT_OUT,
    READABLE_IMAGES,
    BadImage,
    Readable,
    require_readable,
)
from sat_vg.backbone_finetuning.data.decoded_cache import keep_decoded, lay_out
from sat_vg.backbone_finetuning.data.duplicates import settle_copies
from sat_vg.backbone_finetuning.data.loaders import (
    why_loading_failed,
)
from sat_vg.backbone_finetuning.data.scenes import scenes_folder
from sat_vg.backbone_finetuning.data.sources import Splits, load_class_folders
from sat_vg.backbone_finetuning.engine.micro_batches import is_out_of_memory
from sat_vg.backbone_finetuning.engine.precision import (
    Precision,
    choose_device,
    choose_precision,
    set_up_process,
)
from sat_vg.backbone_finetuning.models.backbones import find_backbone
from sat_vg.backbone_finetuning.models.measuring import has_grouped_convolutions
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
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

COMPUTED = "computed"  # in the cache folder: what cache_gib bounds


def choose_hardware(config: FinetuneConfig) -> Precision:
    """Device and number formats.

    Raises:
        ConfigError: there is no such device, or no such backbone to put on it.
    """
    row = find_backbone(config.backbone)
    device = choose_device(config.device)
    settings = set_up_process(device, config.num_threads, config.keep_freed_memory, config.tf32)
    is_grouped = device.type == "cuda" and config.channels_last is None and has_grouped_convolutions(row)
    precision = choose_precision(
        device, config.mixed_precision, config.autocast_dtype, config.channels_last, is_grouped
    )
    return replace(precision, process=settings)


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
    """``check_images`` for whoever reads the images once: the splits, and the images that were left out."""
    checked = check_images(config, splits)
    return checked.splits, checked.left_out


def check_images(config: FinetuneConfig, splits: Splits) -> Readable:
    """Decode every image once, and look for copies.

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
    return readable._replace(splits=settled)


def image_reader(config: FinetuneConfig, checked: Readable) -> Callable[[str], Tensor]:
    """What reads train's and val's images, uint8 ``[3, H, W]``: decoded anew, or out of a file of decoded images.

    Raises:
        ConfigError: there is no room for what ``cache`` asks for.
    """
    paths = [*checked.splits.train.paths, *checked.splits.val.paths]
    solves_probe = config.strategy == "linear_probe" and config.probe_solver == "exact"
    reader = keep_decoded(
        config.cache,
        lay_out(paths, checked.contents, checked.sizes),
        computed_cache(config),
        is_read_once=config.num_epochs == 1 or solves_probe,
    )
    if reader.note is not None:
        say(reader.note)
    return reader.read


def computed_cache(config: FinetuneConfig) -> BoundedCache:
    """Where decoded images and features are kept."""
    return BoundedCache(cache_folder() / COMPUTED, int(config.cache_gib * 2**30))


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
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                "the memory is too small for a step, however few images go through the model at once "
                f"({(str(error).splitlines() or ['no memory'])[0]}). Use a smaller --image_size or backbone, or "
                "freeze stages; the checkpoints are untouched"
            ) from error
        # torch has no class of its own for what happens to its workers
        lost = why_loading_failed(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            raise
        raise LoadingError(f"{lost}. The checkpoints are untouched: the same command goes on") from error
