"""Evaluate a best_model.pt on images: from checkpoint to report.html."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.commands.evaluate.cli import EvaluateOptions
from sat_vg.backbone_finetuning.commands.evaluate.files import epochs_of_run, summary_of, write_results
from sat_vg.backbone_finetuning.commands.trained_models import advising_smaller_batches, load_ensemble, model_file
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.loading.loaders import ImageDataset, validation_loader
from sat_vg.backbone_finetuning.data.loading.workers import Workers
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.data.sources.scenes import scenes_folder
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.evaluation.averages import averaged_predictions, gain_and_cost, predict_views
from sat_vg.backbone_finetuning.evaluation.calibration import fit_temperature
from sat_vg.backbone_finetuning.evaluation.mistakes import look_at
from sat_vg.backbone_finetuning.evaluation.predictions import Predictions
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.artifact import current_versions, read_artifact, write_artifact
from sat_vg.backbone_finetuning.models.ensemble import Ensemble
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.prediction_table import predictions_csv
from sat_vg.backbone_finetuning.training.preparation import (
    are_same_images,
    choose_hardware,
    explained_losses,
    find_images,
    require_images,
    split_otherwise,
)
from sat_vg.backbone_finetuning.utils.cores import usable_cores
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, DataError, UserError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_num_workers
from sat_vg.backbone_finetuning.utils.printable import quote_some
from sat_vg.backbone_finetuning.utils.terminal import say

_BATCH_SIZE = 64  # where the training chose its own
_OF_THE_SPLIT = ("split", "block_size", "group_column", "shard_window", "train_split", "val_split")


def evaluate_checkpoint(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate, print a table, and write the report; with ``calibrate``, also a copy of the checkpoint.

    Images, split, batches and number formats are those of the training unless the options say otherwise, so on its
    own data the numbers are the ones that it logged for these weights. Returns what evaluation.json holds. Raises
    UserError where the checkpoint, the data or a setting cannot be used.
    """
    source = model_file(options.checkpoint)
    ensemble = load_ensemble(options.checkpoint, options.ensemble, options.views, say)
    model = ensemble.models[0]
    target = None if options.calibrate is None else _calibrated_path(options, source)
    config = _config_of(options, model)
    precision = choose_hardware(config)
    config, found = _images_of(config, options, model.provenance["config"].get("dataset_path"))
    splits, _ = require_images(config, found, decoder_of(model.preprocessing, marks_missing=True))
    split = {"val": splits.val, "train": splits.train, "test": splits.test}[options.split]
    if split is None:
        data = config.dataset or config.dataset_path
        raise ConfigError(f"--split test: {data!r} has no folder test, and names no such images; use val or train")
    split = _with_labels_of(model, split)
    tell_of_seen_images(options, ensemble, splits.val_is_drawn)
    predictions, averaged = _predict_all(ensemble, split, config, precision, options)
    temperature = model.temperature if averaged is None else 1.0  # the averaged probabilities have theirs in them
    task = TASKS[model.task]
    if target is not None:
        temperature = model.temperature = fit_temperature(predictions.logits, predictions.labels)
    lines = task.per_image(predictions, _relative_paths(config, split), temperature)
    mistakes = task.mistakes(predictions, lines, model.class_names, temperature)
    content = {
        **_summary(options, config, model, split),
        **({} if averaged is None else {"averaged": averaged}),
        **task.assess(predictions, model.class_names, temperature),
        "mistakes": [one.entry for one in mistakes],
    }
    say(summary_of(content))
    views = [look_at(model, _images(model, split), one.place, one.explained, precision) for one in mistakes]
    table = predictions_csv(lines, model.class_names)
    write_results(expand_home(options.out), content, table, views, epochs_of_run(content["training"]))
    if target is not None:
        write_artifact(target, replace(read_artifact(source), temperature=model.temperature))
        say(f"written: {target}, which is {source} with a temperature of {model.temperature:.3f}")
    return content


def tell_of_seen_images(options: EvaluateOptions, ensemble: Ensemble, val_is_drawn: bool) -> None:
    """Warn of models that may have been trained on the images that are now held out for the first one."""
    if options.split != "val":
        return
    first, *others = (model.provenance["config"] for model in ensemble.models)
    for path, config in zip(options.ensemble, others, strict=True):
        own = {**config, "dataset": None, "dataset_path": options.data}
        if options.data is not None and not are_same_images(config, own):
            continue
        name = split_otherwise(first, config, val_is_drawn)
        if not are_same_images(first, config):
            name = "dataset_path" if first.get("dataset") == config.get("dataset") else "dataset"
        if name is not None:
            before, now = (one.get(name, FinetuneConfig.defaults()[name]) for one in (config, first))
            say(
                f"warning: {path!r} was trained with {name} = {before!r} and CHECKPOINT with {now!r}: it may have "
                "been trained on these images, which would flatter the result"
            )


def _calibrated_path(options: EvaluateOptions, source: Path) -> Path:
    """Path of the calibrated copy, checked before anything is computed: nothing else may be overwritten."""
    wanted = options.calibrate or ""
    if options.ensemble or options.views > 1:
        raise ConfigError(
            f"--calibrate {wanted!r}: one model's temperature is fitted to its own probabilities; leave out --views "
            "and --ensemble, which average them"
        )
    path = expand_home(wanted)
    if path.suffix != ".pt" or path.is_dir():
        raise ConfigError(f"--calibrate {wanted!r}: give the path of the file to write, such as calibrated.pt")
    if path.exists() and not (source.exists() and path.samefile(source)):
        read_artifact(path)  # nothing else is overwritten, least of all the state of a run
    return path


def _config_of(options: EvaluateOptions, model: FineTuneModel) -> FinetuneConfig:
    """The settings of the training, with the options in their place."""
    given: dict[str, Any] = {"device": options.device, "num_workers": options.num_workers, "micro_batch_size": None}
    settings = {**model.provenance["config"], **given, "backbone": model.backbone, "num_classes": None}
    if options.data is not None:
        # What was allowed for the training's images says nothing of these.
        settings |= {"dataset_path": options.data, "dataset": None, "allow_outside": options.allow_outside}
    if settings.get("on_duplicates") != "ignore":
        settings["on_duplicates"] = "warn"  # nothing is trained here, and the splits are the same with both
    if options.batch_size is not None:
        settings["batch_size"] = options.batch_size
    return FinetuneConfig.from_dict(settings)


def _images_of(config: FinetuneConfig, options: EvaluateOptions, trained_on: object) -> tuple[FinetuneConfig, Splits]:
    """The images, split as those of the training; other images that cannot be split so, as they are or by seed.

    Those of ``trained_on`` are never split otherwise: a part of what the model has seen would flatter it.
    """
    plain = config.replace(**{name: FinetuneConfig.defaults()[name] for name in _OF_THE_SPLIT})
    if options.data is None:
        return config, find_images(config)
    folder = expand_home(options.data)
    for name in ("train_split", "val_split"):
        usual = getattr(plain, name)
        if not (folder / getattr(config, name)).exists() and (folder / usual).is_dir():
            config = config.replace(**{name: usual})
    try:
        return config, find_images(config)
    except UserError as error:
        if isinstance(trained_on, str) and folder.resolve() == expand_home(trained_on).resolve():
            raise
        try:
            images = find_images(plain)
        except UserError:
            raise error from None
        say(f"note: these images are not split as those of the training: {str(error).removesuffix('; leave it out')}")
        return plain, images


def _with_labels_of(model: FineTuneModel, split: Split) -> Split:
    """The split with the model's labels; some of its classes may be absent, others must not be there."""
    if split.is_multi_label != (model.task == "multi_label"):
        ways = ("one class", "any number of classes")
        gives, has = (ways[several] for several in (not split.is_multi_label, split.is_multi_label))
        raise DataError(
            f"the model gives an image {gives}, and these images have {has} each; evaluate it on images that are "
            "labelled like those of its training"
        )
    known = list(map(same_form, model.class_names))
    unknown = [name for name in split.class_names if same_form(name) not in known]
    if unknown:
        raise DataError(
            f"the model knows no class {quote_some(unknown, 5)}; it knows "
            f"{quote_some(model.class_names)}. Rename or remove these folders"
        )
    places = [known.index(same_form(name)) for name in split.class_names]
    if split.label_sets is not None:
        sets = tuple(tuple(sorted(places[index] for index in classes)) for classes in split.label_sets)
        return replace(split, label_sets=sets, class_names=model.class_names)
    return replace(split, labels=tuple(places[label] for label in split.labels), class_names=model.class_names)


def _images(model: FineTuneModel, split: Split) -> ImageDataset:
    """The images as a model takes them; nothing in that is random."""
    return ImageDataset(split, model.preprocessing.geometry(), seed=0, read=decoder_of(model.preprocessing).read)


def _predict_all(
    ensemble: Ensemble, split: Split, config: FinetuneConfig, precision: Precision, options: EvaluateOptions
) -> tuple[Predictions, dict[str, Any] | None]:
    """Predictions for all images in the number format of the training, and what was averaged, if anything was."""
    # Where nothing else is said, the batches of the training's validation: the sums are then the same to the bit.
    of_training = 2 * config.batch_size if isinstance(config.batch_size, int) else _BATCH_SIZE
    batch_size = options.batch_size or of_training
    count = choose_num_workers(config.num_workers, precision.device, usable_cores())
    found = []
    for path, model in zip((options.checkpoint, *options.ensemble), ensemble.models, strict=True):
        precision.place_model(model)
        workers = Workers(count, precision.device, config.loader_timeout)
        with explained_losses(config), advising_smaller_batches(batch_size):
            images = ImageDataset(
                split, model.preprocessing.geometry(), config.seed, decoder_of(model.preprocessing).read
            )
            batches = validation_loader(images, batch_size, workers)
            predictions, shares = predict_views(model, batches, precision, ensemble.num_views)
        found.append((predictions, shares))
        bad = (~(predictions.logits + shares).isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise CheckpointError(
                f"the model {path!r} gives no finite numbers for {len(bad)} of {len(split)} images, the first "
                f"{split.paths[bad[0]]!r}: its weights are damaged; use another best_model.pt"
            )
    plain, _ = found[0]
    if ensemble.passes == 1:
        return plain, None
    names = (options.checkpoint, *options.ensemble)
    return averaged_predictions(plain, [shares for _, shares in found]), gain_and_cost(ensemble, names, plain)


def _relative_paths(config: FinetuneConfig, split: Split) -> list[str]:
    """The paths of the images below the folder of the data."""
    if config.dataset is not None:  # its images may lie in the cache folder: from that of the classes on
        around = os.path.commonpath([str(Path(path).parent.parent) for path in split.paths])
        return [os.path.relpath(path, around) for path in split.paths]
    root = scenes_folder() if config.dataset_path is None else expand_home(config.dataset_path)
    folder = root.parent if root.is_file() else root
    return [os.path.relpath(path, folder) for path in split.paths]


def _summary(options: EvaluateOptions, config: FinetuneConfig, model: FineTuneModel, split: Split) -> dict[str, Any]:
    """The part of evaluation.json that says what was evaluated."""
    return {
        "checkpoint": options.checkpoint,
        "data": config.dataset or config.dataset_path,
        "split": split.name,
        "backbone": model.backbone,
        "image_size": model.preprocessing.image_size,
        "calibrated_here": options.calibrate is not None,
        "training": {name: _plain(model.provenance[name]) for name in ("metrics", "config")},
        "versions": {"training": _plain(model.provenance["versions"]), "evaluation": current_versions()},
    }


def _plain(values: Mapping[Any, object]) -> dict[str, Any]:
    """A part of a checkpoint as JSON can hold it; of foreign values only the name of their type."""

    def is_plain(value: object) -> bool:
        return abs(value) < 2**63 if isinstance(value, (int, float)) else value is None or isinstance(value, str)

    def shown(value: object) -> object:
        if isinstance(value, (list, tuple)) and all(map(is_plain, value)):
            return list(value)
        return value if is_plain(value) else f"({type(value).__name__})"

    return {str(name) if is_plain(name) else "?": shown(value) for name, value in values.items()}
