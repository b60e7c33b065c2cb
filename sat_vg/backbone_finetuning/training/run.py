"""The fine-tuning recipe, from top to bottom: config → data → model → phases → loop → best_model.pt."""

from contextlib import ExitStack
from dataclasses import dataclass

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.readable import LEFT_OUT, Readable, write_left_out
from sat_vg.backbone_finetuning.data.loading.own_transform import Change, OwnTransform, digest_of
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.evaluation.tasks import task_of
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import absent_auxiliary_heads, usual_size
from sat_vg.backbone_finetuning.training.assembly import assemble, hardware_of, plan_phases
from sat_vg.backbone_finetuning.training.checkpoint import RunState, restore_run, save_run
from sat_vg.backbone_finetuning.training.image_outputs import BestOutputs
from sat_vg.backbone_finetuning.training.loop import fit
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.preparation import (
    check_images,
    choose_bands,
    explained_losses,
    find_images,
    for_bands,
    image_reader,
    tell_of_seen_images,
    with_band_statistics,
    with_levels,
)
from sat_vg.backbone_finetuning.training.record import Outputs, SaveSchedule
from sat_vg.backbone_finetuning.training.resumption import epochs_to_reopen, require_place, way_to_train_on
from sat_vg.backbone_finetuning.training.run_folder import (
    EarlierRun,
    adopt_best_model,
    clear_folders,
    find_run,
    free_name,
    own_folders,
)
from sat_vg.backbone_finetuning.training.run_identity import (
    TRANSFORM,
    RunIdentity,
    check_identity,
    contents_of,
    fingerprint_of,
)
from sat_vg.backbone_finetuning.training.run_summary import (
    TrainingResult,
    describe_ranks,
    show_end,
    show_plan,
    show_start,
    summarise,
)
from sat_vg.backbone_finetuning.training.tracking import FileTracker, NullTracker
from sat_vg.backbone_finetuning.training.training import Stopping, Training
from sat_vg.backbone_finetuning.training.unset_fields import (
    resolve_batch_size,
    resolve_image_settings,
    resolve_metric,
    resolve_strategy,
)
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.ranks import Ranks, joined
from sat_vg.backbone_finetuning.utils.terminal import say


def finetune(config: FinetuneConfig, transform: Change | None = None) -> TrainingResult:
    """Fine-tune as the configuration says, or go on with the run that is in its checkpoint folder.

    Args:
        config: the settings.
        transform: your own change of training images, after the augmentation: a function or module, ``[C, H, W]`` →
            the same shape and type (uint8; of GeoTIFFs float32). torch's, NumPy's and Python's global generators are
            seeded by the image and the epoch before each call. A resumed run needs the same.

    Returns:
        The best model's path and metrics.

    Raises:
        UserError: a setting, the data, the weights or a checkpoint cannot be used, or the loss left the numbers.
        InterruptedRun: Ctrl-C, SIGTERM or SIGUSR1; the state was saved, the same call goes on.
    """
    # Checks come in the order of what they cost; decoding every image is the last.
    with joined() as ranks, ExitStack() as stack:
        tell_notes(config)
        precision = hardware_of(config, ranks)
        found = ranks.broadcast_from_rank0(lambda: find_images(config))
        named = ranks.broadcast_from_rank0(lambda: free_name(config))
        folders = own_folders(expand_home(named.checkpoint_dir), expand_home(named.log_dir))
        ranks.broadcast_from_rank0(lambda: stack.enter_context(folders))
        own = None if transform is None else OwnTransform(transform)
        return run_or_resume(named, precision, found, ranks, own)


def dry_run(config: FinetuneConfig) -> None:
    """Say what a run would do: data, phases, steps, batch shapes. Trains and writes nothing."""
    with joined() as ranks:
        tell_notes(config)
        precision = hardware_of(config, ranks)
        found = ranks.broadcast_from_rank0(lambda: find_images(config))
        prepared = prepare(config, found, None, precision, ranks, measures_bands=False)
        read = decoder_of(prepared.model.preprocessing, marks_missing=True).read
        training = assemble(prepared.config, prepared.images, prepared.model, precision, read, ranks)
        show_plan(prepared.config, training, prepared.phases, prepared.images.splits)


def tell_notes(config: FinetuneConfig) -> None:
    """Say which settings come from elsewhere than the command line, and which defaults they replaced."""
    for note in config.notes:
        say(note)


@dataclass(frozen=True)
class Prepared:
    """What a run trains and on what, before its components are put together.

    Attributes:
        config: with every unset field resolved.
        model: with its starting weights, or none where a checkpoint's follow; on the host.
        phases: in order.
        images: that can be read.
    """

    config: FinetuneConfig
    model: FineTuneModel
    phases: list[Phase]
    images: Readable


def prepare(
    config: FinetuneConfig,
    found: Splits,
    earlier: EarlierRun | None,
    precision: Precision,
    ranks: Ranks,
    measures_bands: bool = True,
) -> Prepared:
    """Resolve unset fields, build the model, check the images.

    What lies on a disk rank 0 finds out for all; what every process needs there comes from the first on its machine.

    Args:
        config: as given.
        found: the images, not opened yet.
        earlier: run to go on with.
        precision: device and formats.
        ranks: the processes that train together.
        measures_bands: whether means and deviations of GeoTIFFs' bands are computed.
    """
    config = resolve_image_settings(resolve_metric(config, found), earlier)
    model = ranks.in_turn(lambda: build_model(config, found, earlier))
    config = resolve_strategy(config, len(found.train), model.needs_head, earlier)
    phases = choose_phases(config, model)
    say(f"device: {precision.description}{describe_ranks(ranks)}")
    decoder = decoder_of(model.preprocessing, marks_missing=True)
    images = ranks.broadcast_from_rank0(lambda: check_images(config, found, decoder))
    if measures_bands:
        model.preprocessing = ranks.broadcast_from_rank0(
            lambda: with_band_statistics(config, images, model.preprocessing)
        )
    num_images = len(images.splits.train)
    config = ranks.broadcast_from_rank0(lambda: resolve_batch_size(config, num_images, model, precision, earlier))
    return Prepared(config, model, phases, images)


def run_or_resume(
    config: FinetuneConfig, precision: Precision, found: Splits, ranks: Ranks, transform: OwnTransform | None = None
) -> TrainingResult:
    """Train, or go on with an earlier run, once the run's folders are locked."""
    # Plan: config, model, phases, images.
    checkpoint_dir, log_dir = expand_home(config.checkpoint_dir), expand_home(config.log_dir)
    earlier = ranks.broadcast_from_rank0(lambda: find_run(checkpoint_dir, config.resume))
    prepared = prepare(config, found, earlier, precision, ranks)
    config, model, images = prepared.config, prepared.model, prepared.images
    reopened = None if earlier is None else epochs_to_reopen(earlier, prepared.phases, model)
    has_finished = earlier is not None and bool(earlier.content["state"].get("finished")) and reopened is None
    # Components: optimizer, schedule, loaders, loss.
    decoder = decoder_of(model.preprocessing)
    read = decoder.read if has_finished else ranks.in_turn(lambda: image_reader(config, images, decoder))
    training = assemble(config, images, model, precision, read, ranks, transform)
    # State: of an earlier run, or new.
    identity = RunIdentity(
        config.to_dict(),
        fingerprint_of(images.splits),
        model.preprocessing.to_dict(),
        contents_of(images) | ({} if transform is None else {TRANSFORM: digest_of(transform, model.preprocessing)}),
        {} if earlier is None else earlier.resumed_from,
    )
    state = RunState() if earlier is None else restore(prepared, training, earlier, identity, reopened)
    state = ranks.broadcast_from_rank0(lambda: prepare_run_dirs(config, earlier, state, images))
    if earlier is not None and not earlier.lives_in(checkpoint_dir):  # from now on it does
        save_run(checkpoint_dir, state, training.tensors, identity, config.max_checkpoints, ranks)
    if state.finished:
        return ranks.broadcast_from_rank0(lambda: summarise(config))
    # Train, and record it.
    with FileTracker(log_dir, state) if ranks.is_first else NullTracker() as tracker:
        if tracker.is_empty:
            show_start(config, training, prepared.phases, images.splits, tracker)
        outputs = Outputs(
            folder=checkpoint_dir,
            identity=identity,
            save_frequency=config.save_frequency,
            keep=config.max_checkpoints,
            saves=SaveSchedule(config.save_every_steps, 60 * config.save_every_minutes),
            log_every=config.log_every,
            tracker=tracker,
            path_of=lambda index: images.splits.train.paths[index],
            best_outputs=BestOutputs(len(images.splits.val), model.preprocessing),
        )
        with explained_losses(config):
            fit(training, prepared.phases, stopping_of(config), outputs, state)
            return ranks.broadcast_from_rank0(lambda: show_end(config, training, prepared.phases, outputs, state))


def restore(
    prepared: Prepared, training: Training, earlier: EarlierRun, identity: RunIdentity, reopened: int | None
) -> RunState:
    """Restore an earlier run's state, after checking that it can be gone on with.

    Args:
        prepared: the run that goes on.
        training: whose tensors are restored.
        earlier: the run, as read from its file.
        identity: of the run that goes on.
        reopened: epochs done of the last phase, where a finished run is given more of them.

    Raises:
        CheckpointError: its settings, images, place or tensors do not fit.
    """
    way_on = f"\n{way_to_train_on(prepared.config, earlier)}"
    check_identity(earlier.content, identity, earlier.path, lambda other: plan_phases(other, prepared.model), way_on)
    state = restore_run(earlier.content, training.tensors)
    metric = stopping_of(prepared.config).metric
    require_place(state, earlier.content, training, prepared.phases, earlier.path, metric)
    if reopened is not None:
        state.reopen(reopened)
    training.micro_batches.size = state.micro_batch_size or training.micro_batches.size
    return state


def prepare_run_dirs(
    config: FinetuneConfig, earlier: EarlierRun | None, state: RunState, images: Readable
) -> RunState:
    """Clear the run's folders, and say what it goes on with; returns the state it begins with."""
    checkpoint_dir, log_dir = expand_home(config.checkpoint_dir), expand_home(config.log_dir)
    is_new_here = earlier is None or not earlier.lives_in(checkpoint_dir)
    clear_folders(checkpoint_dir, log_dir, begins_anew=is_new_here)
    write_left_out(log_dir / LEFT_OUT, images.left_out)
    if earlier is not None:
        adopt_best_model(earlier, checkpoint_dir, state)
        if state.finished:
            say(f"the run in {checkpoint_dir} has finished. Another one: --checkpoint_dir DIR --log_dir DIR")
            say("The same one anew: --resume never, which moves this one aside")
            say(way_to_train_on(config, earlier))
        else:
            say(f"going on with {earlier.path}: {counted(state.epoch, 'epoch')} done, step {state.step}")
    return state


def stopping_of(config: FinetuneConfig) -> Stopping:
    """What "best" means and when to stop; the metric is resolved."""
    assert config.early_stopping_metric is not None
    return Stopping(config.early_stopping_metric, config.early_stopping_patience, config.early_stopping_min_delta)


def build_model(config: FinetuneConfig, splits: Splits, earlier: EarlierRun | None) -> FineTuneModel:
    """The model with its starting weights, or with none yet where an earlier run's will be put in."""
    chosen = choose_bands(config, splits)
    model = FineTuneModel(
        config.backbone,
        len(splits.class_names),
        config.pretrained,
        config.freeze_early_layers is True,
        config.unfreeze_layers,
        config.dropout,
        weights=config.weights if earlier is None else "none",
        image_size=config.image_size,
        class_names=splits.class_names,
        task=task_of(splits.train.is_multi_label).name,
        seed=config.seed,
        freeze_layers=config.num_frozen_stages,
        bands=None if chosen is None else chosen.names,
        attention_dropout=config.attention_dropout,
        pool=config.pool,
        allow_missing=config.allow_missing,
    )
    for warning in () if chosen is None else chosen.warnings:
        say(f"warning: {warning}")
    model.preprocessing = for_bands(model.preprocessing, chosen)
    if earlier is None:
        model.preprocessing = with_levels(config, splits, model.preprocessing)
    else:
        model.preprocessing = preprocessing_of(earlier, model)
    say(f"model: {model.backbone}, {sum(model.parameter_counts().values()) / 1e6:.2f} M parameters")
    lacking = absent_auxiliary_heads(model.network, model.row)
    if lacking:
        say(f"without its auxiliary head {lacking[0]}, which needs images of {usual_size(model.row)} pixels")
    if earlier is None:
        say(model.weights_report)
        tell_of_seen_images(config, model.trained_with, splits)
    return model


def preprocessing_of(earlier: EarlierRun, model: FineTuneModel) -> Preprocessing:
    """What an earlier run's starting weights asked for.

    Raises:
        CheckpointError: it is not sound, or not for such a model.
    """
    found, own = Preprocessing.from_dict(earlier.content["preprocessing"]), model.preprocessing
    if (found.image_size, found.bands) != (own.image_size, own.bands):
        raise CheckpointError(
            f"{str(earlier.path)!r} is of images of {found.image_size} pixels with the bands "
            f"{', '.join(found.bands)}, and these settings give {own.image_size} pixels and {', '.join(own.bands)}: "
            "go on with the run's own settings, or begin anew with --resume never"
        )
    return found


def choose_phases(config: FinetuneConfig, model: FineTuneModel) -> list[Phase]:
    """The fine-tuning strategy as phases.

    Raises:
        ConfigError: the strategy does not fit the backbone or the number of epochs.
    """
    phases = plan_phases(config, model)
    last = [phase for phase in phases if phase.method != "mix"][-1]  # the most that is ever trained
    described = [
        f"{phase.name} for {counted(phase.epochs, 'epoch')}, "
        f"{sum(phase.trained_parameters(model).values()) / 1e6:.2f} M {phase.verb}{phase.details}"
        for phase in phases
    ]
    say(f"phases: {'; '.join(described)}")
    last.apply_to(model)
    return phases
