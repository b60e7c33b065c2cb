"""How well a best_model.pt does on images, from checkpoint to evaluation.json."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.loaders import ImageDataset, validation_loader
from sat_vg.backbone_finetuning.data.sources import Split
from sat_vg.backbone_finetuning.engine.loop import evaluate
from sat_vg.backbone_finetuning.engine.metrics import Validation
from sat_vg.backbone_finetuning.engine.precision import Precision, choose_num_workers
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.preparation import (
    choose_hardware,
    explained_losses,
    find_images,
    require_images,
)
from sat_vg.backbone_finetuning.reports.figures import draw_confusion_matrix
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError, WriteError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.terminal import say


@dataclass(frozen=True)
class Request:
    """What is to be evaluated.

    Attributes:
        checkpoint: path of a best_model.pt.
        data: folder of images; unset: that of the training.
        split: val, train or test.
        output_dir: where evaluation.json and confusion_matrix.png are written.
        batch_size: images at once.
        device: ``auto`` or as in the configuration.
        num_workers: processes that decode images; unset: chosen for the device.
    """

    checkpoint: str
    data: str | None = None
    split: str = "val"
    output_dir: str = "evaluation"
    batch_size: int = 64
    device: str = "auto"
    num_workers: int | None = None


def evaluate_checkpoint(request: Request) -> dict[str, Any]:
    """Evaluate, print a table, and write evaluation.json and confusion_matrix.png.

    Images, split and number formats are those of the training unless the request says otherwise, so on its own data
    the numbers are the ones that it logged for these weights.

    Returns:
        What evaluation.json holds.

    Raises:
        UserError: the checkpoint, the data or a setting cannot be used.
    """
    model = FineTuneModel.load_checkpoint(expand_home(request.checkpoint))
    given = {"device": request.device, "batch_size": request.batch_size, "num_workers": request.num_workers}
    settings = {**model.provenance["config"], **given, "backbone": model.backbone, "num_classes": None}
    if request.data is not None:
        settings["dataset_path"] = request.data
    if settings.get("on_duplicates") != "ignore":
        settings["on_duplicates"] = "warn"  # nothing is trained here, and the splits are the same with both
    config = FinetuneConfig.from_dict({**settings, "micro_batch_size": None})
    precision = choose_hardware(config)
    splits, _ = require_images(config, find_images(config))
    split = {"val": splits.val, "train": splits.train, "test": splits.test}[request.split]
    if split is None:
        raise ConfigError(f"--split test: {config.dataset_path!r} has no folder test; use --split val or train")
    split = with_labels_of(model.class_names, split)
    validation = run_over(model, split, config, precision)
    content = summary(request, config, model, split, validation)
    say(table_of(content))
    folder = expand_home(request.output_dir)
    try:
        write_text(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")
        with atomic_write(folder / "confusion_matrix.png") as file:
            figure = draw_confusion_matrix(validation.confusion.numpy(), model.class_names, f"images of {split.name}")
            figure.savefig(file, dpi=110)
    except OSError as error:
        raise WriteError(
            f"the results cannot be written to {str(folder)!r} ({error.strerror}); choose another --output_dir"
        ) from error
    say(f"written: {folder / 'evaluation.json'}, {folder / 'confusion_matrix.png'}")
    return content


def with_labels_of(class_names: Sequence[str], split: Split) -> Split:
    """The split with the model's labels; some of its classes may be absent.

    Raises:
        DataError: there are images of a class that the model does not know.
    """
    unknown = [name for name in split.class_names if name not in class_names]
    if unknown:
        raise DataError(
            f"the model knows no class {_some(unknown, 5)}; it knows {_some(class_names, 10)}. Rename or remove "
            "these folders"
        )
    places = [list(class_names).index(name) for name in split.class_names]
    return replace(split, labels=tuple(places[label] for label in split.labels), class_names=tuple(class_names))


def _some(names: Sequence[str], limit: int) -> str:
    return ", ".join(map(repr, names[:limit])) + (" …" if len(names) > limit else "")


def run_over(model: FineTuneModel, split: Split, config: FinetuneConfig, precision: Precision) -> Validation:
    """The model's loss and confusion matrix over a split, in the number format of the training."""
    dataset = ImageDataset(split, model.preprocessing.geometry(), config.seed)
    workers = choose_num_workers(config.num_workers, precision.device, os.cpu_count() or 1)
    precision.place_model(model)
    loader = validation_loader(dataset, config.batch_size, workers, precision.device, config.loader_timeout)
    with explained_losses(config):
        validation = evaluate(model, loader, precision)
    assert validation is not None, "nothing asked it to stop"
    return validation


def summary(
    request: Request, config: FinetuneConfig, model: FineTuneModel, split: Split, validation: Validation
) -> dict[str, Any]:
    """What evaluation.json holds: shares of 1, counts, and the confusion matrix with true classes as rows."""
    confusion = validation.confusion.tolist()
    rows = class_rows(confusion)
    present = [row["f1"] for row in rows if row["images"]]
    return {
        "checkpoint": request.checkpoint,
        "data": config.dataset_path,
        "split": split.name,
        "images": len(split),
        "accuracy": validation.accuracy,
        "loss": validation.loss,
        "macro_f1": sum(present) / len(present),
        "classes": dict(zip(model.class_names, rows, strict=True)),
        "confusion": confusion,
    }


def class_rows(confusion: Sequence[Sequence[int]]) -> list[dict[str, float]]:
    """Precision, recall, F1 and number of images by class; 0 where nothing was predicted or there is no image."""
    rows = []
    for label, row in enumerate(confusion):
        hits, images, predicted = row[label], sum(row), sum(other[label] for other in confusion)
        rows.append(
            {
                "precision": hits / max(predicted, 1),
                "recall": hits / max(images, 1),
                "f1": 2 * hits / max(images + predicted, 1),
                "images": images,
            }
        )
    return rows


def table_of(content: dict[str, Any]) -> str:
    """The summary for the terminal."""
    rows = [
        (name, *(f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")), row["images"])
        for name, row in content["classes"].items()
    ]
    table = text_table(("class", "precision %", "recall %", "F1 %", "images"), rows)
    return (
        f"{table}\n\n{content['split']}: accuracy {100 * content['accuracy']:.2f} % of {content['images']} images, "
        f"macro F1 {100 * content['macro_f1']:.2f} %, loss {content['loss']:.4f}"
    )
