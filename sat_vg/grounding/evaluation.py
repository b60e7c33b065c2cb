"""``sat-vg ground evaluate`` and ``predict``: metrics, predictions, a page with boxes, and the box of one phrase."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes

from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing, lock_output
from sat_vg.backbone_finetuning.reports.pages import image_url, render_page
from sat_vg.backbone_finetuning.training.preparation import are_same_images
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_device, choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.terminal import progress, say
from sat_vg.grounding import metrics
from sat_vg.grounding.batches import Phrases
from sat_vg.grounding.config import EvaluateOptions, GroundingConfig, PredictOptions
from sat_vg.grounding.data import load_data
from sat_vg.grounding.images import letterbox
from sat_vg.grounding.model import GroundingModel, Prediction
from sat_vg.grounding.network import best_boxes
from sat_vg.grounding.text import PretrainedText
from sat_vg.grounding.words import IDENTITY, SYMMETRIES, tokens_of, turn_words

_MOST_PICTURES = 48
_PICTURE_SIDE = 288  # pixels


class Answers(NamedTuple):
    """Predicted boxes, one of each of the P phrases of a split, in the order of its records."""

    boxes: NDArray[np.float64]  # corners [P, 4] in pixels of the image
    scores: NDArray[np.float64]  # probabilities [P]
    overlaps: NDArray[np.float64]  # with the true boxes [2, P], see metrics.overlaps_of


@torch.no_grad()
def answer(model: GroundingModel, phrases: Phrases, batch_size: int, precision: Precision) -> Answers:
    """The answers of a model, which is left in eval mode, to all phrases."""
    model.eval()
    found, scores = np.empty((len(phrases), 4)), np.empty(len(phrases))
    for batch in progress(phrases.in_order(batch_size), total=phrases.num_batches(batch_size), desc="evaluation"):
        moved = batch.to(precision.device)
        with precision.autocast():
            chosen, boxes = best_boxes(*model(moved.images, moved.masks, moved.image_of, moved.words))
        scores[batch.places] = chosen.float().cpu()
        for place, box in zip(batch.places, boxes.cpu(), strict=True):
            found[place] = phrases.store.boxes[phrases.records[place].image].to_image(box)
    return Answers(found, scores, metrics.overlaps_of(found, phrases.arrays()[1]))


def tell_cut_phrases(
    model: GroundingModel, split: str, phrases: Sequence[str], are_turned: bool = False, can_read_more: bool = False
) -> None:
    """Say how many phrases of a split are longer, as they are or turned, than what the model reads of them."""
    most, text = model.max_words, model.network.text
    turns = SYMMETRIES if are_turned else (IDENTITY,)

    @cache
    def length(words: tuple[str, ...]) -> int:
        return len(model.encode(words, max_words=None))

    lengths = np.array([[length(tuple(turn_words(tokens_of(one), turn))) for turn in turns] for one in phrases])
    cut = int((lengths > most).any(1).sum())
    if cut:
        unit, readable = "words", int(lengths.max())
        if isinstance(text, PretrainedText):
            unit, readable = "tokens", min(readable, text.most_tokens or readable)
        remedy = f": --max_words {readable}" if can_read_more and readable > most else ""
        longer = counted(cut, f"phrase of {split} is", f"phrases of {split} are")
        when = " when turned with the image" if cut > (lengths[:, 0] > most).sum() else ""  # the first turn is none
        say(f"data: {longer} longer than {most} {unit}{when}; what is beyond is not read{remedy}")


def tell_unknown_words(model: GroundingModel, phrases: Sequence[str]) -> None:
    """Say how many phrases have words that the model, if it reads words, does not know."""
    unknown = model.vocabulary.unknown(phrases)
    if unknown and not isinstance(model.network.text, PretrainedText):
        say(f"data: {counted(unknown, 'phrase has', 'phrases have')} words that the model does not know")


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate a grounding model; returns the content of metrics.json."""
    out = expand_home(options.out)
    model = GroundingModel.load_checkpoint(expand_home(options.checkpoint))
    precision = choose_precision(choose_device(options.device), mixed_precision=True)
    precision.place_model(model)
    chosen = {name: getattr(options, name) for name in ("data", "box_format", "on_bad_record")}
    places = [{"dataset_path": settings.get("data")} for settings in (chosen, model.config)]
    if options.box_format is None and are_same_images(*places):
        chosen["box_format"] = model.config.get("box_format")
    config = GroundingConfig(**{**model.config, **asdict(model.sizes), **chosen})
    with lock_output(out), explaining_writing(f"{str(out)!r} cannot be written to", "; make room, or choose another"):
        data = load_data(config, model.preprocessing, (options.split,))
        phrases = Phrases(data.splits[options.split], data.store, model.encode)
        texts = [record.phrase for record in phrases.records]
        tell_unknown_words(model, texts)
        tell_cut_phrases(model, options.split, texts)
        answers = answer(model, phrases, options.batch_size, precision)
        content, rows = _figures(options.split, model, phrases, answers.overlaps), _rows(phrases, answers)
        worst = [rows[place] for place in np.argsort(metrics.ious_of(answers.overlaps), kind="stable")]
        write_text(out / "metrics.json", json.dumps(content, indent=1))
        write_text(out / "predictions.json", json.dumps(rows, indent=1))
        write_text(out / "report.html", _page_of(content, worst[:_MOST_PICTURES], model))
        data.list_left_out(out)
    _print(content)
    say(f"{out / 'report.html'}: open it in a browser")
    return content


def predict(options: PredictOptions) -> Prediction:
    """Find a phrase in an image, and draw the box where that is asked for."""
    out = None if options.out is None else expand_home(options.out)
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"out = {options.out!r}: a .png file is written; for example found.png")
    model = GroundingModel.load_checkpoint(expand_home(options.checkpoint)).to(choose_device(options.device))
    image = expand_home(options.image)
    pixels = model.read(image)
    if out is not None and out.exists() and out.samefile(image):
        raise ConfigError(f"out = {options.out!r}: this is the image itself; choose another name")
    found = model.predict(pixels, options.phrase)
    assert isinstance(found, Prediction), "of one phrase"
    box = [round(side, 1) for side in found.box]
    if options.json:
        row = {"image": options.image, "phrase": options.phrase, "box": box, "score": round(found.score, 4)}
        say(json.dumps(row))
    else:
        say(f"{options.phrase}: box {', '.join(map(str, box))} (x1, y1, x2, y2 in pixels), score {found.score:.2f}")
        tell_unknown_words(model, [options.phrase])
        tell_cut_phrases(model, "this command", [options.phrase])
    if out is not None:
        width = max(2, max(pixels.shape) // 200)
        picture = draw_bounding_boxes(pixels, torch.tensor([found.box]), colors=(255, 0, 255), width=width)
        with explaining_writing(f"{options.out!r} cannot be written", ""), atomic_write(out) as file:
            functional.to_pil_image(picture).save(file, "PNG")
        if not options.json:
            say(f"{options.out}: the image with the box")
    return found


def _figures(split: str, model: GroundingModel, phrases: Phrases, overlaps: NDArray[np.float64]) -> dict[str, Any]:
    """The content of metrics.json."""
    texts, targets, sizes = phrases.arrays()
    shares = ((targets[:, 2:] - targets[:, :2]) / sizes[:, :2]).prod(1)
    return {
        **metrics.metrics_of(overlaps),
        "split": split,
        "num_phrases": len(phrases),
        "num_images": len(phrases.by_image),
        "intervals_95": metrics.intervals_of(overlaps, [record.image for record in phrases.records]),
        "by_phrase_family": metrics.by_group(overlaps, [metrics.family_of(tokens_of(text)) for text in texts]),
        "by_box_size": metrics.by_group(overlaps, [metrics.box_size_of(share) for share in shares]),
        "without_the_image": metrics.baseline_metrics(model.baselines, texts, targets, sizes, model.vocabulary),
    }


def _rows(phrases: Phrases, answers: Answers) -> list[dict[str, Any]]:
    """The content of predictions.json."""
    found = zip(phrases.records, answers.boxes, answers.scores, metrics.ious_of(answers.overlaps), strict=True)
    return [
        {
            "image": record.image,
            "phrase": record.phrase,
            "box": [round(side, 2) for side in box.tolist()],
            "target": [round(side, 2) for side in record.box],
            "score": round(float(score), 4),
            "iou": round(float(iou), 4),
        }
        for record, box, score, iou in found
    ]


def _print(content: Mapping[str, Any]) -> None:
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


def _page_of(content: Mapping[str, Any], worst: Sequence[Mapping[str, Any]], model: GroundingModel) -> str:
    """A self-contained HTML page of metrics.json and of rows of predictions.json, the lowest IoU first."""
    tables = {
        "Kind of phrase": content["by_phrase_family"],
        "Size of the box": content["by_box_size"],
        "Without the image": content["without_the_image"],
    }
    return render_page(
        "report.html",
        templates=Path(__file__).parent,
        title="Grounding",
        sections=("Groups", "Worst"),
        content=content,
        tables={name: table for name, table in tables.items() if table},
        pictures=[(row, image_url(_picture_of(row, model.read(row["image"])))) for row in worst],
    )


def _picture_of(row: Mapping[str, Any], pixels: Tensor) -> NDArray[np.uint8]:
    """The image with the true box in green and the predicted one in pink, uint8 ``[H, W, 3]``."""
    canvas, box = letterbox(pixels, _PICTURE_SIDE)
    width, height = box.extent
    boxes = torch.tensor([row["target"], row["box"]]) * box.scale
    colours = [(90, 230, 90), (255, 64, 200)]
    drawn: Tensor = draw_bounding_boxes(canvas[:, :height, :width], boxes, colors=colours, width=2)
    return np.asarray(drawn.permute(1, 2, 0))
