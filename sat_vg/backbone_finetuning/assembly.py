"""Configuration, images and model become what the loop trains with; nothing after this sees the configuration."""

import hashlib
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import sat_vg
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks import Readable
from sat_vg.backbone_finetuning.data.loaders import ImageBatches, ImageDataset, Workers
from sat_vg.backbone_finetuning.data.mixing import Mixing
from sat_vg.backbone_finetuning.data.sampling import BatchPlan, Part
from sat_vg.backbone_finetuning.data.transforms import training_transform
from sat_vg.backbone_finetuning.engine.ema import MovingAverage, NoAverage
from sat_vg.backbone_finetuning.engine.feeds import Feeds
from sat_vg.backbone_finetuning.engine.micro_batches import MicroBatches
from sat_vg.backbone_finetuning.engine.optim import Schedule, build_optimizer, soft_cross_entropy
from sat_vg.backbone_finetuning.engine.precision import Precision, choose_num_workers
from sat_vg.backbone_finetuning.engine.profiling import NoProfile, Profile
from sat_vg.backbone_finetuning.engine.training import Training
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.preparation import computed_cache
from sat_vg.backbone_finetuning.utils.errors import ConfigError


def assemble(
    config: FinetuneConfig,
    images: Readable,
    model: FineTuneModel,
    precision: Precision,
    read: Callable[[str], Tensor],
) -> Training:
    """Put images, optimizer and schedule together.

    Args:
        config: with a batch size that is a number.
        images: training and validation images.
        model: with its starting weights; moved to its device.
        precision: device and number formats.
        read: a file's path → its image.

    Raises:
        ConfigError: the settings do not fit the model or the images.
    """
    assert isinstance(config.batch_size, int)
    precision.place_model(model)
    plan = BatchPlan(len(images.splits.train), config.batch_size, config.seed)
    micro_batch_size = config.micro_batch_size or config.batch_size
    require_norm_can_train(model, min(micro_batch_size, plan.batch_sizes[0]))
    return Training(
        model=model,
        optimizer=build_optimizer(
            model,
            config.optimizer,
            config.weight_decay,
            config.momentum,
            config.layer_decay,
            config.head_lr_scale,
        ),
        scaler=precision.scaler(),
        precision=precision,
        schedule=Schedule(
            config.lr_scheduler,
            config.learning_rate,
            config.warmup_epochs,
            config.lr_step_size,
            config.lr_gamma,
            config.min_lr,
        ),
        mixing=Mixing(config.mixup_alpha, config.cutmix_alpha, config.seed),
        plan=plan,
        feeds=feeds_of(
            config, images, model, precision, image_batches(config, images, model, precision.device, read)
        ),
        seed=config.seed,
        loss=partial(soft_cross_entropy, label_smoothing=config.label_smoothing),
        gradient_clip=config.gradient_clip or float("inf"),
        micro_batches=MicroBatches(micro_batch_size),
        average=MovingAverage(model.network, config.ema_decay) if config.ema_decay else NoAverage(),
        outputs=torch.compile(model.training_outputs) if config.compile else model.training_outputs,
        profile=Profile(precision.device) if config.profile else NoProfile(),
    )


def image_batches(
    config: FinetuneConfig,
    images: Readable,
    model: FineTuneModel,
    device: torch.device,
    read: Callable[[str], Tensor],
) -> ImageBatches:
    """Training images, augmented if so configured and not, and validation images, as batches."""
    assert isinstance(config.batch_size, int)
    splits = images.splits
    plain = model.preprocessing.geometry()
    augmented = training_transform(config.image_size, model.preprocessing.interpolation)
    transform = augmented if config.use_augmentation else plain
    num_workers = choose_num_workers(config.num_workers, device, os.cpu_count() or 1)
    return ImageBatches(
        {
            Part.TRAINING: ImageDataset(splits.train, transform, config.seed, read),
            Part.VALIDATION: ImageDataset(splits.val, plain, config.seed, read),
            Part.PLAIN_TRAINING: ImageDataset(splits.train, plain, config.seed, read),
        },
        BatchPlan(len(splits.train), config.batch_size, config.seed),
        in_order_size=2 * config.batch_size,
        workers=Workers(num_workers, device, config.loader_timeout),
    )


def feeds_of(
    config: FinetuneConfig, images: Readable, model: FineTuneModel, precision: Precision, batches: ImageBatches
) -> Feeds:
    """What phases are fed with: stored features where nothing random lies before the trained stages."""
    mixes = config.mixup_alpha > 0 or config.cutmix_alpha > 0
    contents = [[images.contents[path] for path in split.paths] for split in (images.splits.train, images.splits.val)]
    settings = (config.seed, config.use_augmentation, model.preprocessing.to_dict(), sat_vg.__version__)
    return Feeds(
        model,
        precision,
        batches,
        num_views=config.cached_views if config.use_augmentation else 1,
        cache=None if mixes or config.cache == "off" else computed_cache(config),
        images_key=hashlib.sha256(
            repr((contents, settings, batches.parts[Part.TRAINING].transform)).encode()
        ).hexdigest(),
    )


def require_norm_can_train(model: FineTuneModel, fewest_images: int) -> None:
    """Batch norm that is trained needs more than one image at a time for its statistics.

    Raises:
        ConfigError: it would get a single one.
    """
    model.train()
    trains_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())
    if fewest_images == 1 and trains_norm:
        raise ConfigError(
            f"batch norm of {model.backbone} cannot be trained on one image at a time; use a batch_size (and "
            "micro_batch_size) of 2 or more, freeze the stages, or take a backbone without it such as vit_b_16"
        )
