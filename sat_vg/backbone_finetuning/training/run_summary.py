"""What a run says of itself: the plan of a dry run, the record's beginning and end, and what it has given."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL, current_versions
from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.record_pictures import draw_curves
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.metric_lines import METRICS, read_metric_lines
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.profiling import TRACE
from sat_vg.backbone_finetuning.training.record import Outputs
from sat_vg.backbone_finetuning.training.run_pictures import (
    outputs_of_file,
    show_best_model,
    show_training_images,
)
from sat_vg.backbone_finetuning.training.tracking import FileTracker, Tracker
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.ranks import Ranks
from sat_vg.backbone_finetuning.utils.terminal import say


@dataclass(frozen=True)
class TrainingResult:
    """What a run gave.

    Attributes:
        best_model: path of best_model.pt.
        metrics: of its weights on the validation images: ``val_accuracy`` and ``macro_f1`` (fractions), ``val_loss``,
            ``epoch``; where an image can have several classes also ``val_map`` and ``micro_f1``.
        log_dir: folder of the TensorBoard log and metrics.jsonl.
    """

    best_model: Path
    metrics: dict[str, float]
    log_dir: Path

    @cached_property
    def model(self) -> FineTuneModel:
        """The best model, read from its file, on the CPU and in eval mode.

        Raises:
            CheckpointError: the file is gone or damaged.
        """
        return FineTuneModel.load_checkpoint(self.best_model)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """A row for each epoch: ``epoch``, ``phase``, ``train_loss``, ``val_loss``, ``val_accuracy``, ``seconds``.

        ``pandas.DataFrame(result.history)`` makes a table of it. Epochs that the log lost are not in it.
        """
        path = self.log_dir / METRICS
        return read_metric_lines(path).ended_epochs if path.exists() else []

    @property
    def train_loss(self) -> float | None:
        """Mean loss over the training images in the epoch of the best model; None: nothing was trained by then."""
        rows = [row for row in self.history if row["epoch"] == self.metrics["epoch"] and row["step"] > 0]
        return float(rows[-1]["train_loss"]) if rows else None


def describe_ranks(ranks: Ranks) -> str:
    """The number of processes, as the end of a line; empty for one alone."""
    return f"; {ranks.count} processes, each computes its share of every batch" if ranks.count > 1 else ""


def show_plan(config: FinetuneConfig, training: Training, phases: Sequence[Phase], splits: Splits) -> None:
    """Say what a run would train: classes, phases, steps, shape of a batch. The model is left in the last phase."""
    model, plan, size = training.model, training.plan, config.image_size
    class_counts = zip(splits.class_names, splits.train.class_counts(), splits.val.class_counts(), strict=True)
    say("\n" + text_table(("class", "train", "val"), list(class_counts)))
    counts = model.parameter_counts()
    for number, phase in enumerate(phases, start=1):
        trained = phase.trained_parameters(model)
        rows = [(name, f"{count:,}", _format_trained(trained[name], count)) for name, count in counts.items()]
        say(f"\nphase {number}, {phase.name}: {counted(phase.epochs, 'epoch')}")
        say(text_table(("stage", "parameters", phase.verb), rows))
        stored = training.sources.describe(phase)
        if stored:
            say(stored)
    say(f"\nsteps per epoch: {plan.num_batches}, of {_format_batch_sizes(training)} images")
    largest = plan.batch_sizes[1]
    kind = "uint8" if model.preprocessing.files is None else "float32"
    own = len(plan.share.of_batch(range(largest)))
    shape, whose = f"[{own}, {model.in_channels}, {size}, {size}]", " of the first process" if own < largest else ""
    say(f"batch{whose}: images {kind} {shape}, targets float32 [{own}, {model.num_classes}]")
    say("dry run: nothing was trained")


def _format_trained(trained: int, count: int) -> str:
    if not trained:
        return "no"
    return "yes" if trained == count else f"{trained:,}"


def _format_batch_sizes(training: Training) -> str:
    smallest, largest = training.plan.batch_sizes
    return f"{largest}" if smallest == largest else f"{smallest} or {largest}"


def describe_run(training: Training, phases: Sequence[Phase], splits: Splits) -> list[str]:
    """Data, model, weights, phases, steps, device and versions, a line each."""
    model = training.model
    return [
        f"data: {splits.description}",
        f"model: {model.backbone}, {sum(model.parameter_counts().values()) / 1e6:.2f} M parameters",
        model.weights_report,
        *(f"phase {number}: {phase.description}" for number, phase in enumerate(phases, start=1)),
        f"steps: {training.plan.num_batches} an epoch, of {_format_batch_sizes(training)} images",
        f"device: {training.precision.description}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in current_versions().items()),
    ]


def show_start(
    config: FinetuneConfig, training: Training, phases: Sequence[Phase], splits: Splits, tracker: Tracker
) -> None:
    """Begin the record: settings, what is trained on what, and the first images."""
    tracker.text("config", config.as_yaml().splitlines())
    tracker.text("run", describe_run(training, phases, splits))
    tracker.charts()
    show_training_images(training, splits, tracker)


def show_end(
    config: FinetuneConfig, training: Training, phases: Sequence[Phase], outputs: Outputs, state: RunState
) -> TrainingResult:
    """Complete the record: pictures of the best model, the profile, learning curves, and what the run gave."""
    tracker = outputs.tracker
    assert isinstance(tracker, FileTracker), "it is the process that writes"
    log_dir = expand_home(config.log_dir)
    found = outputs.best_outputs.kept or outputs_of_file(training, outputs.folder / BEST_MODEL)
    show_best_model(training, found, outputs.best_outputs.thumbnails, tracker, state.step)
    profile = training.profile.write(log_dir)
    if profile is not None:
        say(f"\n{profile}\n{log_dir / TRACE}: open it in chrome://tracing or Perfetto\n")
    if len(tracker.ended_epochs()) > 1:
        tracker.figure("learning_curves", draw_curves(tracker.ended_epochs(), state.best_epoch), state.step)
    found_metrics = outputs.best_outputs.metrics
    if found_metrics is None or config.shard_weights:  # of an epoch before a resume, or of a model in parts
        result = summarise(config)
    else:
        result = tell_result(config, training.model.get_feature_extractor(), dict(found_metrics))
    results = {"best_epoch" if name == "epoch" else name: value for name, value in result.metrics.items()}
    settings = config.to_dict() | {"strategy": config.strategy or phases[0].name}
    tracker.hyperparameters(settings, results, state.step)
    return result


def summarise(config: FinetuneConfig) -> TrainingResult:
    """Read the best_model.pt of a finished run, and say what it is and how to go on."""
    path = expand_home(config.checkpoint_dir) / BEST_MODEL
    extractor = FineTuneModel.load_checkpoint(path).get_feature_extractor()
    return tell_result(config, extractor, extractor.provenance["metrics"])


def tell_result(config: FinetuneConfig, extractor: FeatureExtractor, metrics: dict[str, float]) -> TrainingResult:
    """Say what a run's best_model.pt is and how to go on.

    Args:
        config: of the run.
        extractor: of such a model; its weights are not looked at.
        metrics: of the best epoch.
    """
    path = expand_home(config.checkpoint_dir) / BEST_MODEL
    maps = zip(extractor.out_names, extractor.channels, extractor.strides, strict=True)
    beside_python = Path(sys.executable).with_name("tensorboard")
    needs_path = shutil.which("tensorboard") is None and beside_python.exists()
    tensorboard = min(str(beside_python), os.path.relpath(beside_python), key=len) if needs_path else "tensorboard"
    what = "mAP" if "val_map" in metrics else "accuracy"
    value = metrics.get("val_map", metrics["val_accuracy"])
    result = TrainingResult(path, metrics, expand_home(config.log_dir))
    say(f"done: validation {what} {100 * value:.2f} % (epoch {metrics['epoch']}){losses_of(result)}")
    say(f"  best model   {path}")
    say("  its maps     " + ", ".join(f"{n}: {c} channels at stride {s}" for n, c, s in maps))
    say(f'  use it       FineTuneModel.load_checkpoint("{path}").get_feature_extractor()')
    say(f"  TensorBoard  {tensorboard} --logdir {config.log_dir}")
    return result


def losses_of(result: TrainingResult) -> str:
    """Both losses of the best epoch and their difference, as the end of a line."""
    train_loss, val_loss = result.train_loss, result.metrics["val_loss"]
    if train_loss is None:
        return f", val_loss {val_loss:.4f}"
    return f", train_loss {train_loss:.4f}, val_loss {val_loss:.4f}, gap {val_loss - train_loss:+.4f}"
