"""``sat-vg ground evaluate``: metrics with intervals, predictions, and a page with boxes over images."""

import json
from typing import Any

import numpy as np

from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import choose_device, choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.safe_files import write_text
from sat_vg.backbone_finetuning.utils.terminal import say
from sat_vg.grounding.commands.options import EvaluateOptions
from sat_vg.grounding.data.batches import Phrases
from sat_vg.grounding.data.images import ImageStore
from sat_vg.grounding.data.loading import DataChoice, list_left_out, load_records
from sat_vg.grounding.data.records import Record
from sat_vg.grounding.data.words import tokens_of
from sat_vg.grounding.evaluation.answers import Answers, answer
from sat_vg.grounding.evaluation.baselines import baselines_of
from sat_vg.grounding.evaluation.metrics import box_size_of, by_group, family_of, intervals_of, metrics_of
from sat_vg.grounding.models.grounding_model import GroundingModel
from sat_vg.grounding.reports.page import page_of


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate a grounding model; returns the content of metrics.json.

    Raises:
        UserError: the model or the data cannot be used.
    """
    model = GroundingModel.load_checkpoint(expand_home(options.checkpoint))
    precision = choose_precision(choose_device(options.device), mixed_precision=True)
    precision.place_model(model)
    trained = {"val_fraction": 0.1, "seed": 0} | model.config
    choice = DataChoice(
        data=options.data, image_size=model.sizes.image_size, box_format=options.box_format,
        on_bad_record=options.on_bad_record, val_fraction=float(trained["val_fraction"]), seed=int(trained["seed"]),
    )  # fmt: skip
    checked, store = load_records(choice, (options.split,), wanted=("train",))
    records = checked.splits[options.split]
    unknown = model.vocabulary.unknown(record.phrase for record in records)
    if unknown:
        say(f"data: {counted(unknown, 'phrase has', 'phrases have')} words that the model does not know")
    phrases = Phrases(records, store, model.vocabulary, model.sizes.max_words, model.sizes.image_size)
    answers = answer(model, phrases, options.batch_size, precision)

    content = _figures(options.split, answers, checked.splits.get("train"), store)
    rows = _rows(answers)
    worst = [rows[place] for place in np.argsort(answers.overlaps.ious, kind="stable")]
    out = expand_home(options.out)
    write_text(out / "metrics.json", json.dumps(content, indent=1))
    write_text(out / "predictions.json", json.dumps(rows, indent=1))
    write_text(out / "report.html", page_of(content, worst))
    list_left_out(checked.left_out, out)
    _print(content)
    say(f"{out / 'report.html'}: open it in a browser")
    return content


def _figures(split: str, answers: Answers, train: list[Record] | None, store: ImageStore) -> dict[str, Any]:
    """The content of metrics.json. Baselines need the training phrases."""
    records, overlaps = answers.records, answers.overlaps
    images = [record.image for record in records]
    shares = [
        (x2 - x1) * (y2 - y1) / (store.boxes[image].width * store.boxes[image].height)
        for image, (x1, y1, x2, y2) in zip(images, (record.box for record in records), strict=True)
    ]
    return {
        **metrics_of(overlaps),
        "split": split,
        "num_phrases": len(records),
        "num_images": len(set(images)),
        "intervals_95": intervals_of(overlaps, images),
        "by_phrase_family": by_group(overlaps, [family_of(tokens_of(record.phrase)) for record in records]),
        "by_box_size": by_group(overlaps, [box_size_of(share) for share in shares]),
        "without_the_image": baselines_of(train, records, store) if train else {},
    }


def _rows(answers: Answers) -> list[dict[str, Any]]:
    """The content of predictions.json."""
    found = zip(answers.records, answers.boxes, answers.scores, answers.overlaps.ious, strict=True)
    return [
        {
            "image": record.image, "phrase": record.phrase, "box": [round(float(side), 2) for side in box],
            "target": [round(side, 2) for side in record.box], "score": round(float(score), 4),
            "iou": round(float(iou), 4),
        }
        for record, box, score, iou in found
    ]  # fmt: skip


def _print(content: dict[str, Any]) -> None:
    low, high = content["intervals_95"]["pr@0.5"]
    phrases, images = counted(content["num_phrases"], "phrase"), counted(content["num_images"], "image")
    say(f"{content['split']}: {phrases} about {images}")
    say("  ".join(f"Pr@{name[3:]} {100 * content[name]:.1f} %" for name in content if name.startswith("pr@")))
    say(
        f"mean IoU {100 * content['mean_iou']:.1f} %  cumulative IoU {100 * content['cum_iou']:.1f} %  "
        f"(Pr@0.5, 95 % interval: {100 * low:.1f} to {100 * high:.1f} %)"
    )
    for name, value in {**content["by_phrase_family"], **content["by_box_size"]}.items():
        say(f"  {name:<22}{counted(value['count'], 'phrase'):>14}  Pr@0.5 {100 * value['pr@0.5']:5.1f} %")
    for name, value in content["without_the_image"].items():
        say(f"  {name + ' (no image)':<36}  Pr@0.5 {100 * value['pr@0.5']:5.1f} %")
