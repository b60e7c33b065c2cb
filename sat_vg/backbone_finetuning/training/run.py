"""The fine-tuning recipe, from top to bottom: config → data → model → phases → loop → best_model.pt."""

import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.readable import LEFT_OUT, Readable, write_left_out
from sat_vg.backbone_finetuning.data.loading.sampling import Part
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.evaluation.tasks import task_of
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import absent_auxiliary_heads, usual_size
from sat_vg.backbone_finetuning.reports.figures import draw_image_grid, draw_learning_curves, in_lines
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.training.assembly import assemble, hardware_of, plan_phases
from sat_vg.backbone_finetuning.training.checkpoint import (
    BEST_MODEL,
    RunIdentity,
    RunState,
    check_identity,
    fingerprint,
    restore_run,
    save_run,
)
from sat_vg.backbone_finetuning.training.loop import fit
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.preparation import (
    check_images,
    choose_bands,
    explained_losses,
    find_images,
    for_bands,
    image_reader,
    with_band_statistics,
    with_levels,
)
from sat_vg.backbone_finetuning.training.profiling import TRACE
from sat_vg.backbone_finetuning.training.record import Outputs
from sat_vg.backbone_finetuning.training.resumption import require_place
from sat_vg.backbone_finetuning.training.run_description import code, describe_run
from sat_vg.backbone_finetuning.training.run_folder import (
    EarlierRun,
    adopt_best_model,
    clear_folders,
    find_run,
    own_folders,
)
from sat_vg.backbone_finetuning.training.run_pictures import show_best_model
from sat_vg.backbone_finetuning.training.save_schedule import SaveSchedule
from sat_vg.backbone_finetuning.training.tracking import FileTracker, NullTracker, Tracker
from sat_vg.backbone_finetuning.training.training import Stopping, Training
from sat_vg.backbone_finetuning.training.training_on import epochs_to_reopen, way_to_train_on
from sat_vg.backbone_finetuning.training.unset_fields import (
    resolve_batch_size,
    resolve_image_settings,
    resolve_metric,
)
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.ranks import Ranks, joined
from sat_vg.backbone_finetuning.utils.terminal import say


@dataclass(frozen=True)
class TrainingResult:
    """What a run gave.

    Attributes:
        best_model: path of best_model.pt.
        metrics: of its weights on the validation images: ``val_accuracy`` and ``macro_f1`` (fractions), ``val_loss``,
            ``epoch``; where an image can have several classes also ``val_map`` and ``micro_f1``.
    """

    best_model: Path
    metrics: dict[str, float]


def finetune(config: FinetuneConfig) -> TrainingResult:
    """Fine-tune as the configuration says, or go on with the run that is in its checkpoint folder.

    Returns:
        The best model's path and metrics.

    Raises:
        UserError: a setting, the data, the weights or a checkpoint cannot be used, or the loss left the numbers.
        InterruptedRun: Ctrl-C, SIGTERM or SIGUSR1; the state was saved, the same call goes on.
    """
    # Whatever can be wrong is looked at in the order of what it costs; decoding every image comes last.
    with joined() as ranks, ExitStack() as stack:
        tell_notes(config)
        precision = hardware_of(config, ranks)
        found = ranks.broadcast_from_rank0(lambda: find_images(config))
        folders = own_folders(expand_home(config.checkpoint_dir), expand_home(config.log_dir))
        ranks.broadcast_from_rank0(lambda: stack.enter_context(folders))
        return run_or_resume(config, precision, found, ranks)


def tell_notes(config: FinetuneConfig) -> None:
    """Say where settings come from that nobody gave on the command line, and which defaults made room."""
    for note in config.notes:
        say(note)


def run_or_resume(config: FinetuneConfig, precision: Precision, found: Splits, ranks: Ranks) -> TrainingResult:
    """What ``finetune`` does once the run's folders are its own.

    What lies on a disk rank 0 finds out for all; what every process needs there comes from the first on its machine.
    """
    checkpoint_dir, log_dir = expand_home(config.checkpoint_dir), expand_home(config.log_dir)
    config = resolve_metric(config, found)
    earlier = ranks.broadcast_from_rank0(lambda: find_run(checkpoint_dir, config.resume))
    config = resolve_image_settings(config, earlier)
    model = ranks.in_turn(lambda: build_model(config, found, earlier))
    phases = choose_phases(config, model)
    say(f"device: {precision.description}{describe_ranks(ranks)}")
    decoder = decoder_of(model.preprocessing, marks_missing=True)
    images = ranks.broadcast_from_rank0(lambda: check_images(config, found, decoder))
    splits = images.splits
    model.preprocessing = ranks.broadcast_from_rank0(
        lambda: with_band_statistics(config, images, model.preprocessing)
    )
    config = ranks.broadcast_from_rank0(
        lambda: resolve_batch_size(config, len(splits.train), model, precision, earlier)
    )
    identity = RunIdentity(
        config.to_dict(),
        fingerprint_of(splits),
        model.preprocessing.to_dict(),
        contents_of(images),
        {} if earlier is None else earlier.resumed_from,
    )
    reopened = None if earlier is None else epochs_to_reopen(earlier, phases, model)
    has_finished = earlier is not None and bool(earlier.content["state"].get("finished")) and reopened is None
    decoder = decoder_of(model.preprocessing)
    read = decoder.read if has_finished else ranks.in_turn(lambda: image_reader(config, images, decoder))
    training = assemble(config, images, model, precision, read, ranks)
    state = RunState()
    if earlier is not None:
        way_on = f"\n{way_to_train_on(config, earlier)}"
        check_identity(earlier.content, identity, earlier.path, lambda other: plan_phases(other, model), way_on)
        state = restore_run(earlier.content, training.tensors)
        require_place(state, earlier.content, training, phases, earlier.path)
        if reopened is not None:
            state.reopen(reopened)
        training.micro_batches.size = state.micro_batch_size or training.micro_batches.size
    state = ranks.broadcast_from_rank0(lambda: prepare_run_dirs(config, earlier, state, images))
    if earlier is not None and not earlier.lives_in(checkpoint_dir):  # from now on it does
        save_run(checkpoint_dir, state, training.tensors, identity, config.max_checkpoints, ranks)
    if state.finished:
        return ranks.broadcast_from_rank0(lambda: summarise(config))
    with FileTracker(log_dir, state) if ranks.is_first else NullTracker() as tracker:
        if tracker.is_empty:
            show_run(config, training, phases, splits, tracker)
        outputs = Outputs(
            folder=checkpoint_dir,
            identity=identity,
            save_frequency=config.save_frequency,
            keep=config.max_checkpoints,
            saves=SaveSchedule(config.save_every_steps, 60 * config.save_every_minutes),
            log_every=config.log_every,
            tracker=tracker,
            path_of=lambda index: splits.train.paths[index],
        )
        with explained_losses(config):
            fit(training, phases, stopping_of(config), outputs, state)
            return ranks.broadcast_from_rank0(lambda: show_end(config, training, tracker, state))


def prepare_run_dirs(
    config: FinetuneConfig, earlier: EarlierRun | None, state: RunState, images: Readable
) -> RunState:
    """Get the run's folders ready, and say what it goes on with; the state it begins with."""
    checkpoint_dir, log_dir = expand_home(config.checkpoint_dir), expand_home(config.log_dir)
    moves_in = earlier is None or not earlier.lives_in(checkpoint_dir)
    clear_folders(checkpoint_dir, log_dir, begins_anew=moves_in)
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


def show_end(config: FinetuneConfig, training: Training, tracker: Tracker, state: RunState) -> TrainingResult:
    """Complete the record: pictures of the best model, the profile, learning curves, and what the run gave."""
    assert isinstance(tracker, FileTracker), "it is the process that writes"
    log_dir = expand_home(config.log_dir)
    show_best_model(training, expand_home(config.checkpoint_dir) / BEST_MODEL, tracker, state.step)
    profile = training.profile.write(log_dir)
    if profile is not None:
        say(f"\n{profile}\n{log_dir / TRACE}: open it in chrome://tracing or Perfetto\n")
    if len(tracker.ended_epochs()) > 1:
        tracker.figure("learning_curves", draw_learning_curves(tracker.ended_epochs()), state.step)
    result = summarise(config)
    results = {"best_epoch" if name == "epoch" else name: value for name, value in result.metrics.items()}
    tracker.hyperparameters(config.to_dict(), results, state.step)
    return result


def describe_ranks(ranks: Ranks) -> str:
    """How many processes there are, behind what the device is; nothing for one alone."""
    return f"; {ranks.count} processes, each computes its share of every batch" if ranks.count > 1 else ""


def fingerprint_of(splits: Splits) -> str:
    """A hash of all images' names, labels and splits; moving the whole data set, to macOS too, does not change it."""
    root = os.path.commonpath([*splits.train.paths, *splits.val.paths])
    entries = [
        (same_form(f"{split.name}/{os.path.relpath(path, root)}"), _identity_of(split, label))
        for split in (splits.train, splits.val)
        for path, label in zip(split.paths, split.labels, strict=True)
    ]
    return fingerprint(entries, splits.class_names)


def contents_of(images: Readable) -> dict[str, str]:
    """By split, a hash of what its images show."""
    return {
        split.name: fingerprint([("", images.contents[path]) for path in split.paths], ())
        for split in (images.splits.train, images.splits.val)
    }


def _identity_of(split: Split, label: int) -> int | str:
    """What tells a label from others; where an image can have several classes its number alone does not."""
    return str(split.classes_of(label)) if split.is_multi_label else label


def stopping_of(config: FinetuneConfig) -> Stopping:
    """What "best" means and when to stop; the metric is settled."""
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
        f"{phase.name} for {phase.epochs} epoch{'' if phase.epochs == 1 else 's'}, "
        f"{sum(counts_of_phase(model, phase).values()) / 1e6:.2f} M {phase.verb}{phase.details}"
        for phase in phases
    ]
    say(f"phases: {'; '.join(described)}")
    model.set_trainable(last.trainable_stages, last.keeps_statistics)
    return phases


def counts_of_phase(model: FineTuneModel, phase: Phase) -> dict[str, int]:
    """Number of parameters by stage that a phase trains. The model is then set to the phase."""
    model.set_trainable(phase.trainable_stages, phase.keeps_statistics)
    return model.parameter_counts(trained_only=True)


def show_run(
    config: FinetuneConfig, training: Training, phases: list[Phase], splits: Splits, tracker: Tracker
) -> None:
    """Begin the record: settings, what is trained on what, and the first images."""
    tracker.text("config", code(config.as_yaml().splitlines()))
    tracker.text("run", describe_run(training, phases, splits))
    tracker.charts()
    show_training_images(training, splits, tracker)


def show_training_images(training: Training, splits: Splits, tracker: Tracker) -> None:
    """Draw the first images of the run as the augmentation hands them to the model."""
    dataset = training.sources.batches.parts[Part.TRAINING]
    samples = [dataset[0, index] for index in training.plan.batches(epoch=0)[0][:16]]
    images = training.model.preprocessing.pictures(torch.stack([image for image, _, _ in samples]))
    titles = [in_lines(splits.train.name_of(label)) for _, label, _ in samples]
    heading = "training images of the first step, as the model sees them before normalisation"
    tracker.figure("training_images", draw_image_grid(images.permute(0, 2, 3, 1).numpy(), titles, heading), step=0)


def summarise(config: FinetuneConfig) -> TrainingResult:
    """Read best_model.pt back, as its user will, and say what it is and how to go on."""
    path = expand_home(config.checkpoint_dir) / BEST_MODEL
    extractor = FineTuneModel.load_checkpoint(path).get_feature_extractor()
    metrics = extractor.provenance["metrics"]
    maps = zip(extractor.out_names, extractor.channels, extractor.strides, strict=True)
    beside_python = Path(sys.executable).with_name("tensorboard")
    needs_path = shutil.which("tensorboard") is None and beside_python.exists()
    tensorboard = min(str(beside_python), os.path.relpath(beside_python), key=len) if needs_path else "tensorboard"
    what = "mAP" if "val_map" in metrics else "accuracy"
    value = metrics.get("val_map", metrics["val_accuracy"])
    say(f"done: validation {what} {100 * value:.2f} % (epoch {metrics['epoch']})")
    say(f"  best model   {path}")
    say("  its maps     " + ", ".join(f"{n}: {c} channels at stride {s}" for n, c, s in maps))
    say(f'  use it       FineTuneModel.load_checkpoint("{path}").get_feature_extractor()')
    say(f"  TensorBoard  {tensorboard} --logdir {config.log_dir}")
    return TrainingResult(path, metrics)


def dry_run(config: FinetuneConfig) -> None:
    """Say what a run would do: data, phases, steps, batch shapes. Trains and writes nothing."""
    with joined() as ranks:
        tell_notes(config)
        precision = hardware_of(config, ranks)
        show_plan(config, precision, ranks)


def _part_of(trained: int, count: int) -> str:
    if not trained:
        return "no"
    return "yes" if trained == count else f"{trained:,}"


def show_plan(config: FinetuneConfig, precision: Precision, ranks: Ranks) -> None:
    """What ``dry_run`` says."""
    found = ranks.broadcast_from_rank0(lambda: find_images(config))
    config = resolve_image_settings(resolve_metric(config, found))
    model = ranks.in_turn(lambda: build_model(config, found, earlier=None))
    phases = choose_phases(config, model)
    say(f"device: {precision.description}{describe_ranks(ranks)}")
    decoder = decoder_of(model.preprocessing, marks_missing=True)
    images = ranks.broadcast_from_rank0(lambda: check_images(config, found, decoder))
    splits = images.splits
    config = ranks.broadcast_from_rank0(
        lambda: resolve_batch_size(config, len(splits.train), model, precision, earlier=None)
    )
    training = assemble(config, images, model, precision, decoder.read, ranks)
    class_counts = zip(splits.class_names, splits.train.class_counts(), splits.val.class_counts(), strict=True)
    say("\n" + text_table(("class", "train", "val"), list(class_counts)))
    counts = model.parameter_counts()
    for number, phase in enumerate(phases, start=1):
        trained = counts_of_phase(model, phase)
        rows = [(name, f"{count:,}", _part_of(trained[name], count)) for name, count in counts.items()]
        say(f"\nphase {number}, {phase.name}: {counted(phase.epochs, 'epoch')}")
        say(text_table(("stage", "parameters", phase.verb), rows))
        stored = training.sources.describe(phase)
        if stored:
            say(stored)
    plan, size = training.plan, config.image_size
    smallest, largest = plan.batch_sizes
    sizes = f"{largest}" if smallest == largest else f"{smallest} or {largest}"
    say(f"\nsteps per epoch: {plan.num_batches}, of {sizes} images")
    kind = "uint8" if model.preprocessing.files is None else "float32"
    own = len(plan.share.of_batch(range(largest)))
    shape, whose = f"[{own}, {model.in_channels}, {size}, {size}]", " of the first process" if own < largest else ""
    say(f"batch{whose}: images {kind} {shape}, targets float32 [{own}, {model.num_classes}]")
    say("dry run: nothing was trained")
