"""Builds the components of a training from the configuration; nothing after this sees the configuration."""

import hashlib
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

import sat_vg
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import parse_phase_stages
from sat_vg.backbone_finetuning.data.checks.readable import Readable
from sat_vg.backbone_finetuning.data.loading.augmentation import augmentation_of
from sat_vg.backbone_finetuning.data.loading.distortions import with_steps
from sat_vg.backbone_finetuning.data.loading.loaders import ImageBatches, ImageDataset
from sat_vg.backbone_finetuning.data.loading.mixing import Mixing
from sat_vg.backbone_finetuning.data.loading.own_transform import OwnTransform
from sat_vg.backbone_finetuning.data.loading.sampling import SAMPLERS, BatchPlan, Part
from sat_vg.backbone_finetuning.data.loading.workers import Workers
from sat_vg.backbone_finetuning.data.shards.source import shard_windows
from sat_vg.backbone_finetuning.data.sources.splits import Split
from sat_vg.backbone_finetuning.evaluation.tasks import task_of
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.freezing import choose_trainable
from sat_vg.backbone_finetuning.training.batch_sources import BatchSources
from sat_vg.backbone_finetuning.training.depthwise import with_fast_depthwise
from sat_vg.backbone_finetuning.training.ema import MovingAverage, NullAverage, WeightAverage
from sat_vg.backbone_finetuning.training.fsdp import FSDPReplica, apply_fsdp, fewest_at_once, precision_for_fsdp
from sat_vg.backbone_finetuning.training.losses import LOSSES, Loss, weights_of_classes
from sat_vg.backbone_finetuning.training.micro_batches import MicroBatches
from sat_vg.backbone_finetuning.training.optim import Schedule, build_optimizer
from sat_vg.backbone_finetuning.training.phases import STRATEGIES, Phase, StrategyInputs, single_phase, then_mixed
from sat_vg.backbone_finetuning.training.preparation import choose_hardware, computed_cache
from sat_vg.backbone_finetuning.training.profiling import NullProfiler, StepProfiler
from sat_vg.backbone_finetuning.training.replicas import DataParallelReplica, Replica, SingleReplica
from sat_vg.backbone_finetuning.training.resizing import GrowingImages, Resizing, keep_size, require_sizes
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.training.wise_ft import NullStartWeights, PhaseStartWeights, StartWeights
from sat_vg.backbone_finetuning.utils.cores import usable_cores
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_num_workers
from sat_vg.backbone_finetuning.utils.ranks import Ranks
from sat_vg.backbone_finetuning.utils.terminal import say


def assemble(
    config: FinetuneConfig,
    images: Readable,
    model: FineTuneModel,
    precision: Precision,
    read: Callable[[str], Tensor],
    ranks: Ranks,
    transform: OwnTransform | None = None,
) -> Training:
    """Build optimizer, schedule, loaders, loss and the rest.

    Args:
        config: with a batch size that is a number.
        images: training and validation images.
        model: with its starting weights; moved to its device.
        precision: device and number formats.
        read: a file's path → its image.
        ranks: the processes that train together.
        transform: the user's own change of training images.

    Raises:
        ConfigError: the settings do not fit the model, the images or the number of processes.
    """
    assert isinstance(config.batch_size, int)
    if not config.shard_weights:
        precision.place_model(model)
    if config.sync_batch_norm:
        share_statistics(model, precision.device, ranks)
    plan = batch_plan(config, images.splits.train, ranks)
    micro_batch_size = config.micro_batch_size or config.batch_size
    require_norm_can_train(model, fewest_images(config, plan, micro_batch_size))
    replica = replica_of(config, model, precision, ranks)
    return Training(
        model=model,
        optimizer=build_optimizer(
            model, config.optimizer, config.weight_decay, config.momentum, config.layer_decay, config.head_lr_scale
        ),
        scaler=precision.scaler(),
        precision=precision,
        schedule=schedule_of(config),
        mixing=Mixing(config.mixup_alpha, config.cutmix_alpha, config.seed),
        plan=plan,
        sources=batch_sources_of(
            config,
            images,
            model,
            precision,
            image_batches(config, images, model, precision, read, ranks, transform),
            ranks,
        ),
        seed=config.seed,
        loss=training_loss(config, images.splits.train, precision.device),
        gradient_clip=config.gradient_clip or float("inf"),
        micro_batches=MicroBatches(micro_batch_size, may_shrink=ranks.count == 1),
        average=average_of(config, model),
        start_weights=start_weights_of(config, model),
        replica=replica,
        ranks=ranks,
        profile=StepProfiler(precision.device) if config.profile and ranks.is_first else NullProfiler(),
        resizing=resizing_of(config, model, precision, plan),
    )


def hardware_of(config: FinetuneConfig, ranks: Ranks) -> Precision:
    """Device and number formats of a training, for one of ``ranks``.

    Raises:
        ConfigError: there is no such device, no such backbone, or no way to divide its weights.
    """
    precision = choose_hardware(config, ranks)
    return precision_for_fsdp(precision, ranks) if config.shard_weights else precision


def replica_of(config: FinetuneConfig, model: FineTuneModel, precision: Precision, ranks: Ranks) -> Replica:
    """The model's replica; built before the optimizer, which gets FSDP's shards of the weights."""
    if config.shard_weights:
        apply_fsdp(model, precision.device, ranks)
        return FSDPReplica(model, precision.device, ranks)
    if config.compile:
        outputs = torch.compile(model.training_outputs)
    else:
        outputs = with_fast_depthwise(model.training_outputs, model.network, precision)
    return SingleReplica(outputs) if ranks.count == 1 else DataParallelReplica(model, outputs, ranks)


def share_statistics(model: FineTuneModel, device: torch.device, ranks: Ranks) -> None:
    """Convert batch norm to SyncBatchNorm; weights and their names stay.

    Raises:
        ConfigError: there are no GPUs, or no other processes.
    """
    if device.type != "cuda" or ranks.count == 1:
        raise ConfigError(
            f"sync_batch_norm = true: torch has it for several processes with a GPU each; this is {ranks.count} on "
            f"{device.type}. Leave it out, freeze the stages, or take a backbone without batch norm such as vit_b_16"
        )
    model.network = nn.SyncBatchNorm.convert_sync_batchnorm(model.network)
    model.set_trainable(model.trainable_stages)  # what is frozen has other modules now


def schedule_of(config: FinetuneConfig) -> Schedule:
    """The course of the learning rate within a phase."""
    return Schedule(
        config.lr_scheduler,
        config.learning_rate,
        config.warmup_epochs,
        config.lr_step_size,
        config.lr_gamma,
        config.min_lr,
    )


def plan_phases(config: FinetuneConfig, model: FineTuneModel) -> list[Phase]:
    """The fine-tuning strategy as phases; the model is left as it is.

    Raises:
        ConfigError: the strategy does not fit the backbone or the number of epochs.
    """
    if config.strategy is None:
        stages = choose_trainable(
            model.stages, config.freeze_early_layers is True, config.unfreeze_layers, config.num_frozen_stages
        )
        phases = single_phase(config.num_epochs, stages, model.stage_names)
    else:
        inputs = StrategyInputs(
            model.stage_names,
            config.num_epochs,
            config.last_layers,
            config.phase_epochs,
            config.probe_solver == "exact",
            is_pretrained=config.pretrained and config.weights != "none",
            phase_stages=None if config.phase_stages is None else parse_phase_stages(config.phase_stages),
        )
        phases = STRATEGIES[config.strategy](inputs)
    return then_mixed(phases) if config.wise_ft else phases


def average_of(config: FinetuneConfig, model: FineTuneModel) -> WeightAverage:
    """The moving average of the weights, if there is one."""
    if not config.ema_decay:
        return NullAverage()
    return MovingAverage(model.network, config.ema_decay)


def start_weights_of(config: FinetuneConfig, model: FineTuneModel) -> StartWeights:
    """The start weights of phases, for WiSE-FT."""
    if not config.wise_ft:
        return NullStartWeights()
    assert config.early_stopping_metric is not None, "it is resolved once the data are known"
    return PhaseStartWeights(model.network, config.early_stopping_metric)


def batch_plan(config: FinetuneConfig, split: Split, ranks: Ranks) -> BatchPlan:
    """Which training images form which batch, and which of them are this process's.

    Raises:
        ConfigError: the sampler does not fit the labels, or there are more processes than pairs of images in a batch.
    """
    assert isinstance(config.batch_size, int)
    if config.sampler == "class_balanced" and split.is_multi_label:
        raise ConfigError(
            "sampler = 'class_balanced': the classes cannot take turns where an image can have several of them or "
            "none; use weighted, or class_weights = 'balanced'"
        )
    order = shard_windows(split, config.shard_window) if config.shard_window else SAMPLERS[config.sampler](split)
    plan = BatchPlan(len(split), config.batch_size, config.seed, order, ranks.share)
    if plan.fewest_images == 0:
        raise ConfigError(
            f"batch_size = {config.batch_size}: it is that of all {ranks.count} processes together, and the smallest "
            f"batch of these {len(split)} images has {plan.batch_sizes[0]}, too few for two each; raise batch_size "
            f"to {2 * ranks.count} or more, or start fewer processes"
        )
    return plan


def resizing_of(config: FinetuneConfig, model: FineTuneModel, precision: Precision, plan: BatchPlan) -> Resizing:
    """The resizing of training images by step.

    Raises:
        ConfigError: the network does not take images of these sizes.
    """
    if config.train_image_size is None:
        return keep_size
    require_sizes(model, config.train_image_size, precision)
    growing = GrowingImages(tuple(sorted(config.train_image_size)), config.num_epochs, plan.num_batches)
    say(growing.description)
    return growing


def training_loss(config: FinetuneConfig, split: Split, device: torch.device) -> Loss:
    """The task's training loss, with the settings that have its fields' names."""
    weights = weights_of_classes(config.class_weights, split.class_counts(), len(split), split.is_multi_label)
    loss = LOSSES[task_of(split.is_multi_label).name]
    settings = {entry.name: getattr(config, entry.name) for entry in fields(loss)}
    return loss(**{**settings, "class_weights": None if weights is None else weights.to(device)})


def image_batches(
    config: FinetuneConfig,
    images: Readable,
    model: FineTuneModel,
    precision: Precision,
    read: Callable[[str], Tensor],
    ranks: Ranks,
    transform: OwnTransform | None = None,
) -> ImageBatches:
    """Training images, augmented if so configured and not, and validation images, as batches.

    Raises:
        ConfigError: the augmentation does not fit the images.
    """
    assert isinstance(config.batch_size, int)
    splits = images.splits
    plain = model.preprocessing.geometry()
    augmented: nn.Module = plain
    if config.augments:
        kind = config.augmentation or "satellite"
        preset = augmentation_of(kind, model.preprocessing, config.crop_scale)
        augmented = with_steps(preset, config.augmentation_steps)
    if transform is not None:
        augmented = nn.Sequential(augmented, transform)
    num_workers = choose_num_workers(config.num_workers, precision.device, usable_cores() // ranks.local_count)
    return ImageBatches(
        {
            Part.TRAINING: ImageDataset(splits.train, augmented, config.seed, read),
            Part.VALIDATION: ImageDataset(splits.val, plain, config.seed, read),
            Part.PLAIN_TRAINING: ImageDataset(splits.train, plain, config.seed, read),
        },
        batch_plan(config, splits.train, ranks),
        in_order_size=max(2, 2 * config.batch_size // ranks.count),
        workers=Workers(num_workers, precision.device, config.loader_timeout),
    )


def batch_sources_of(
    config: FinetuneConfig,
    images: Readable,
    model: FineTuneModel,
    precision: Precision,
    batches: ImageBatches,
    ranks: Ranks,
) -> BatchSources:
    """The batch sources of phases: stored features where nothing before the trained stages changes."""
    transform = batches.parts[Part.TRAINING].transform
    has_own = any(isinstance(module, OwnTransform) for module in transform.modules())  # nothing tells what it is
    changes = config.mixup_alpha > 0 or config.cutmix_alpha > 0 or config.train_image_size is not None or has_own
    is_stored = config.cache != "off" and not config.shard_weights  # processes compute them in turns
    contents = [[images.contents[path] for path in split.paths] for split in (images.splits.train, images.splits.val)]
    settings = (config.seed, config.augments, model.preprocessing.to_dict(), sat_vg.__version__)
    return BatchSources(
        model,
        precision,
        batches,
        num_views=config.cached_views if config.augments or has_own else 1,
        cache=computed_cache(config) if is_stored else None,
        images_key=hashlib.sha256(repr((contents, settings, transform)).encode()).hexdigest(),
        mixes_images=changes,
        ranks=ranks,
    )


def fewest_images(config: FinetuneConfig, plan: BatchPlan, micro_batch_size: int) -> int:
    """The fewest images that a process runs the model on at a time, about.

    Raises:
        ConfigError: with weights in shards some process would have none.
    """
    if config.shard_weights:
        return fewest_at_once(plan, micro_batch_size, plan.share.count)
    return min(micro_batch_size, plan.fewest_images)


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
