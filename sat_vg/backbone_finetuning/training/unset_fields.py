"""Resolves unset fields by the images, the backbone or an earlier run, and says so in a line."""

import math
from dataclasses import dataclass

from sat_vg.backbone_finetuning.configs.combinations import LP_FT_DEFAULTS
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.sources.torchvision_datasets import DATASETS
from sat_vg.backbone_finetuning.evaluation.tasks import task_of
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import TIMM_PREFIX, find_backbone, takes_image_size, usual_size
from sat_vg.backbone_finetuning.training.batch_size import largest_batch
from sat_vg.backbone_finetuning.training.run_folder import EarlierRun
from sat_vg.backbone_finetuning.training.run_identity import as_begun, config_of_run
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.terminal import say

_ENOUGH_FOR_SMALL_IMAGES = 224
_FEW_STEPS = 500  # up to which a probe first was better, on two data sets; see docs/adr/0034
_ENOUGH_STEPS = 100  # for lp_ft's own learning rate; fewer lose the probe by it, and 140 gained
_USUAL_BATCH = 32  # where the batch size is measured later


@dataclass(frozen=True)
class ImageSize:
    """An image size that was chosen for the user, and why."""

    pixels: int
    reason: str


def resolve_image_settings(config: FinetuneConfig, earlier: EarlierRun | None = None) -> FinetuneConfig:
    """The configuration with an image size and an augmentation: those set, an earlier run's, or the usual ones.

    Raises:
        ConfigError: the backbone is unknown.
    """
    changes = {name: None for name in ("image_size", "augmentation") if getattr(config, name) is None}
    if earlier is not None:
        changes = {name: earlier.content["config"].get(name) for name in changes}
        config = config.replace(**changes)
    size = choose_image_size(config)
    if size is not None:
        say(f"image_size: {size.pixels}, {size.reason}")
        config = config.replace(image_size=size.pixels)
    if config.augmentation is None:
        if config.dataset is not None and config.use_augmentation:
            dataset = DATASETS[config.dataset]
            say(f"augmentation: {dataset.augmentation}, as suits {dataset.title}")
        name = "satellite" if config.dataset is None else DATASETS[config.dataset].augmentation
        config = config.replace(augmentation=name)
    return config


def choose_image_size(config: FinetuneConfig) -> ImageSize | None:
    """The image size that goes with backbone, weights and data set; None where one was set that can stay.

    Raises:
        ConfigError: the backbone is unknown.
    """
    row = find_backbone(config.backbone)
    published = usual_size(row, config.weights)
    if config.image_size is not None:  # set, or the built-in scenes' own
        if "image_size" in config.given or takes_image_size(row, config.image_size):
            return None
        return ImageSize(published, f"as {row.name} does not take {config.image_size}, that of the built-in scenes")
    largest = max(config.train_image_size or (0,))
    if largest > published:
        return ImageSize(largest, "the largest of train_image_size")
    dataset = None if config.dataset is None else DATASETS[config.dataset]
    is_small = dataset is not None and dataset.is_small and not row.name.startswith(TIMM_PREFIX)
    if is_small and published > _ENOUGH_FOR_SMALL_IMAGES and takes_image_size(row, _ENOUGH_FOR_SMALL_IMAGES):
        assert dataset is not None
        reason = f"as the images of {dataset.title} are small; that of {row.name} is {published}"
        return ImageSize(_ENOUGH_FOR_SMALL_IMAGES, reason)
    return ImageSize(published, f"the usual one of {row.name}")


def resolve_metric(config: FinetuneConfig, splits: Splits) -> FinetuneConfig:
    """The configuration with a metric that says what "best" means for such images.

    Raises:
        ConfigError: the configured one says nothing of them.
    """
    metric = task_of(splits.train.is_multi_label).metric(config.early_stopping_metric)
    return config.replace(early_stopping_metric=metric)


def resolve_strategy(
    config: FinetuneConfig, num_images: int, needs_head: bool, earlier: EarlierRun | None
) -> FinetuneConfig:
    """The configuration with ``lp_ft`` where nothing says what is trained and a new head gets few steps.

    It starts at random. While it learns, its gradients change the pre-trained backbone (Kumar et al., 2022), and few
    steps do not mend that.

    Args:
        config: as given.
        num_images: that are trained on.
        needs_head: the backbone is pre-trained, and the head starts at random.
        earlier: run to go on with, whose strategy stays.
    """
    if earlier is not None:
        return as_begun(config, config_of_run(earlier.content, earlier.path))
    if config.says_what_is_trained:
        return config
    batch_size = _USUAL_BATCH if config.batch_size == "auto" else config.batch_size
    num_steps = config.num_epochs * math.ceil(num_images / batch_size)
    if not needs_head or num_steps > _FEW_STEPS or config.shard_weights:
        return config
    say(
        f"strategy: lp_ft, a linear probe first, as {counted(num_steps, 'step')} are few to train a new head and the "
        "backbone at once; --strategy full does"
    )
    as_usual = {} if num_steps >= _ENOUGH_STEPS else {name: getattr(config, name) for name in LP_FT_DEFAULTS}
    resolved = config.replace(strategy="lp_ft", **as_usual)
    for note in resolved.notes:
        if note not in config.notes:
            say(note)
    return resolved


def resolve_batch_size(
    config: FinetuneConfig, num_images: int, model: FineTuneModel, precision: Precision, earlier: EarlierRun | None
) -> FinetuneConfig:
    """The configuration with a batch size that is a number: measured, or an earlier run's."""
    if config.batch_size != "auto":
        return config
    if earlier is not None:
        of_run = earlier.content["config"].get("batch_size")
        if type(of_run) is not int or of_run < 1:
            raise CheckpointError(
                f"{str(earlier.path)!r} cannot be gone on with: its batch_size is {of_run!r}, and a run saves the "
                "number that it has found; use an earlier checkpoint"
            )
        return config.replace(batch_size=of_run)
    precision.place_model(model)
    images, reason = largest_batch(model, precision, num_images)
    say(f"batch_size: {images} ({reason})")
    return config.replace(batch_size=images)
