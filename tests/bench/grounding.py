"""Whether fine-tuning the backbone on image-level labels helps grounding, on mosaics of EuroSAT and UC Merced tiles.

    python tests/bench/grounding.py --eurosat DIR --ucmerced DIR --weights mobilenet_v2-imagenet.pth --work DIR \
        --results grounding.jsonl --table grounding.md

A cell is one training: a data set, a start of the backbone, frozen or trainable, a seed. Each adds one line to
``--results``; the same command goes on with those that are missing. ``--most N`` ends it after N new ones. All cells
of a data set see the same mosaics; no tile of the test mosaics was seen by any training. ``--device cuda --jobs 12``
runs 12 cells at a time on a GPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grounding_starts import FINETUNING, ON_SCENES, STARTS, TRAINABLE, Cell, Study, all_cells
from mosaics import SIDE, Mosaics
from runs import machine, paragraph, spread
from torch import Tensor

from sat_vg.backbone_finetuning.utils.precision import Precision, choose_device
from sat_vg.grounding.batches import pad_words
from sat_vg.grounding.config import GroundingConfig
from sat_vg.grounding.metrics import (
    baseline_metrics,
    by_group,
    family_of,
    fit_baselines,
    ious_of,
    metrics_of,
    overlaps_of,
)
from sat_vg.grounding.model import GroundingModel
from sat_vg.grounding.network import Sizes, best_boxes, grounding_loss
from sat_vg.grounding.training import build_optimizer, learning_rate
from sat_vg.grounding.words import Vocabulary, tokens_of

CONFIG = GroundingConfig(
    data="mosaics", image_size=SIDE, width=64, num_heads=2, fusion_layers=2, num_epochs=10, learning_rate=1e-3
)
SIZES = Sizes(SIDE, 20, CONFIG.width, 1, CONFIG.fusion_layers, CONFIG.num_heads, CONFIG.dropout)


class Split:
    """Mosaics in the form that the network takes, with the backbone's maps where it is frozen."""

    def __init__(self, mosaics: Mosaics, vocabulary: Vocabulary, precision: Precision) -> None:
        self.mosaics, self.precision = mosaics, precision
        device = precision.device
        self.images = mosaics.images.to(device)
        self.words = pad_words([vocabulary.encode(tokens_of(one.phrase), 20) for one in mosaics.records]).to(device)
        self.boxes = torch.tensor([one.box for one in mosaics.records]).to(device) / SIDE
        self.image_of = torch.tensor([int(one.image) for one in mosaics.records])
        self.maps: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.words)

    @torch.no_grad()
    def store_maps(self, model: GroundingModel, is_blind: bool) -> None:
        """Compute the backbone's maps once for all images."""
        parts = []
        for images in self.images.split(50):
            with self.precision.autocast():
                found = model.network.maps_of(model.preprocessing.normalise(images), self._no_padding(len(images)))
            parts.append([one.to(self.precision.autocast_dtype) * (0 if is_blind else 1) for one in found])
        self.maps = [torch.cat(few) for few in zip(*parts, strict=True)]

    def answers(self, model: GroundingModel, places: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and boxes of the phrases at ``places``."""
        device = self.precision.device
        images, image_of = (one.to(device) for one in self.image_of[places].unique(return_inverse=True))
        masks, words = self._no_padding(len(images)), self.words[places.to(device)]
        with self.precision.autocast():
            if self.maps is None:
                scores, boxes = model(self.images[images], masks, image_of, words)
            else:
                scores, boxes = model.network.answer([one[images] for one in self.maps], masks, image_of, words)
        return scores, boxes

    @torch.no_grad()
    def found(self, model: GroundingModel) -> np.ndarray:
        """Predicted corners ``[P, 4]`` in pixels."""
        model.eval()
        parts = [best_boxes(*self.answers(model, few))[1] for few in torch.arange(len(self)).split(200)]
        return (torch.cat(parts) * SIDE).double().cpu().numpy()

    def _no_padding(self, count: int) -> Tensor:
        return torch.zeros(count, SIDE, SIDE, dtype=torch.bool, device=self.precision.device)


def run_cell(cell: Cell, study: Study) -> dict[str, Any]:
    """Train and measure one cell; the last epoch counts, so that nothing is chosen."""
    seconds, began = time.process_time(), time.perf_counter()
    source = study.backbone("imagenet" if cell.start == "no image" else cell.start, cell.seed)
    vocabulary = Vocabulary.of(record.phrase for record in study.splits["train"].records)
    torch.manual_seed(cell.seed)
    model = GroundingModel(
        source, vocabulary, SIZES, freeze_backbone=cell.backbone == "frozen", freeze_norm=cell.start != "random"
    )
    study.precision.place_model(model)
    splits = {name: Split(mosaics, vocabulary, study.precision) for name, mosaics in study.splits.items()}
    if cell.backbone == "frozen":
        for split in splits.values():
            split.store_maps(model, cell.start == "no image")
    curve = train(model, splits, cell.seed)
    records = splits["test"].mosaics.records
    overlaps = overlaps_of(splits["test"].found(model), np.array([record.box for record in records]))
    families = by_group(overlaps, [family_of(tokens_of(record.phrase)) for record in records])
    return {
        **metrics_of(overlaps),
        "by_family": {name: round(value["pr@0.5"], 4) for name, value in families.items()},
        "validation_curve": curve,
        "ious": [round(float(iou), 3) for iou in ious_of(overlaps)],
        "precision": str(study.precision),
        "cpu_seconds": round(time.process_time() - seconds, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


def train(model: GroundingModel, splits: Mapping[str, Split], seed: int) -> list[float]:
    """Train all epochs; returns Pr@0.5 on the validation phrases after each."""
    data, size = splits["train"], CONFIG.batch_size
    optimizer = build_optimizer(CONFIG, model, 0.1)
    num_batches, step, curve = -(-len(data) // size), 0, []
    generator = torch.Generator().manual_seed(seed)
    targets = np.array([record.box for record in splits["val"].mosaics.records])
    for _ in range(CONFIG.total_epochs):
        model.train()
        # Images in random order, each with all of its phrases, as the training command does it.
        order = torch.randperm(len(data.mosaics.images), generator=generator)
        for places in order.argsort()[data.image_of].argsort(stable=True).split(size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(CONFIG, step, num_batches) * group["lr_scale"]
            scores, boxes = data.answers(model, places)
            grounding_loss(scores, boxes, data.boxes[places.to(data.boxes.device)]).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        curve.append(metrics_of(overlaps_of(splits["val"].found(model), targets))["pr@0.5"])
    return [round(value, 4) for value in curve]


class Results:
    """The lines of finished cells."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """The line of a cell, or None."""
        return next((line for line in self.lines if line["cell"] == list(vars(cell).values())), None)

    def add(self, cell: Cell, figures: Mapping[str, Any]) -> None:
        """Append a line."""
        self.lines.append({"cell": list(vars(cell).values()), **figures})
        with self.path.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")


def paired_interval(ours: np.ndarray, base: np.ndarray, images: Sequence[str]) -> tuple[float, float, float]:
    """Difference of Pr@0.5 in points with its 95 % interval by a bootstrap over images (Efron, 1979).

    Args:
        ours: IoUs ``[seeds, P]``.
        base: the same of what is compared with, for the same seeds.
        images: image of each phrase.
    """
    gains = ((ours >= 0.5).mean(0) - (base >= 0.5).mean(0)).astype(float)  # [P], mean over seeds
    _, numbers = np.unique(images, return_inverse=True)
    sums, counts = np.bincount(numbers, gains), np.bincount(numbers)
    drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return 100 * gains.mean(), 100 * float(low), 100 * float(high)


def table(results: Results, study: Study, seeds: Sequence[int]) -> Iterator[str]:
    """The Markdown table of a data set."""
    families = ("name alone", "position", "relation")
    yield f"| start | backbone | Pr@0.5, % | mean IoU, % | {' | '.join(families)} | − imagenet, points | seeds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    images = [record.image for record in study.splits["test"].records]
    for backbone in ("frozen", "trainable"):
        for start in (*STARTS, "no image"):
            found = {s: line for s in seeds if (line := results.of(Cell(study.name, start, backbone, s)))}
            base = {s: line for s in found if (line := results.of(Cell(study.name, "imagenet", backbone, s)))}
            if not found:
                continue
            gain = ""
            if start not in ("imagenet", "no image") and len(base) == len(found):
                ious = [np.array([line["ious"] for line in few.values()]) for few in (found, base)]
                mean, low, high = paired_interval(*ious, images)
                gain = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
            lines = list(found.values())
            shown = f"{spread([line['pr@0.5'] for line in lines])} | {spread([line['mean_iou'] for line in lines])}"
            of_families = [spread([line["by_family"][name] for line in lines]) for name in families]
            yield f"| {start} | {backbone} | {shown} | {' | '.join(of_families)} | {gain} | {len(lines)} |"
    for name, value in _baselines(study).items():
        yield f"| {name} | no network | {100 * value['pr@0.5']:.2f} | {100 * value['mean_iou']:.2f} | | | | | |"


def _baselines(study: Study) -> dict[str, dict[str, float]]:
    train_records, test_records = (study.splits[split].records for split in ("train", "test"))
    vocabulary = Vocabulary.of(record.phrase for record in train_records)
    boxes, targets = (np.array([record.box for record in few]) for few in (train_records, test_records))
    baselines = fit_baselines([record.phrase for record in train_records], boxes / SIDE, vocabulary)
    phrases, sizes = [record.phrase for record in test_records], np.full(targets.shape, float(SIDE))
    return baseline_metrics(baselines, phrases, targets, sizes, vocabulary)


def run_cells(cells: Sequence[Cell], studies: Mapping[str, Study], results: Results, jobs: int) -> None:
    """Run the cells, ``jobs`` at a time in processes of their own, each as soon as its fine-tuning has ended."""

    def note(cell: Cell, figures: Mapping[str, Any]) -> None:
        results.add(cell, figures)
        told = f"Pr@0.5 {100 * figures['pr@0.5']:.2f} %, {figures['seconds']:.0f} s"
        print(f"{cell.data}, {cell.start}, {cell.backbone}, seed {cell.seed}: {told}", flush=True)

    if jobs == 1 or not cells:
        for cell in cells:
            note(cell, run_cell(cell, studies[cell.data]))
        return
    for study in {cell.data: studies[cell.data] for cell in cells if cell.start in ON_SCENES}.values():
        study.scenes()
    with (
        ThreadPoolExecutor(jobs) as tuning,
        ThreadPoolExecutor(len(cells)) as waiting,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as processes,
    ):
        tuned = {
            key: tuning.submit(studies[key[0]].fine_tune, *key[1:])
            for key in dict.fromkeys((cell.data, *cell.fine_tuning) for cell in cells)
            if key[1] in FINETUNING
        }

        def run(cell: Cell) -> dict[str, Any]:
            if (fine_tuning := tuned.get((cell.data, *cell.fine_tuning))) is not None:
                fine_tuning.result()
            return processes.submit(_run_in_process, cell, studies[cell.data]).result()

        begun = {waiting.submit(run, cell): cell for cell in cells}
        for done in as_completed(begun):
            note(begun[done], done.result())


_studies: dict[str, Study] = {}  # of this process, with their mosaics


def _run_in_process(cell: Cell, study: Study) -> dict[str, Any]:
    torch.set_num_threads(1)
    return run_cell(cell, _studies.setdefault(study.name, study))


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--eurosat", type=Path, help="folder of the class folders")
    add("--ucmerced", type=Path, help="folder of the class folders")
    add("--weights", type=Path, required=True, help="ImageNet weights of mobilenet_v2")
    add("--work", type=Path, required=True, help="folder of the fine-tuned backbones")
    add("--results", type=Path, required=True, help="file to which each cell adds a line")
    add("--table", type=Path, help="Markdown file to write")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    kinds = [f"{start} frozen" for start in (*STARTS, "no image")] + [f"{start} trainable" for start in TRAINABLE]
    add("--cells", nargs="+", choices=kinds, default=kinds, metavar="CELL", help=f"of {', '.join(kinds)}")
    add("--most", type=int, help="cells to run at most")
    add("--device", default="cpu", help="cpu or cuda")
    add("--jobs", type=int, default=1, help="cells at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    roots = {name: root for name in ("eurosat", "ucmerced") if (root := getattr(options, name)) is not None}
    device = choose_device(options.device)
    studies = {name: Study(name, root, options.weights, options.work, device) for name, root in roots.items()}
    results = Results(options.results)
    todo = [cell for cell in all_cells(list(roots), options.seeds, options.cells) if results.of(cell) is None]
    print(f"{len(todo)} cells to run; finished ones are in {options.results}", flush=True)
    run_cells(todo[: options.most], studies, results, options.jobs)
    text = "\n".join(
        line
        for study in studies.values()
        for line in ("", f"## {study.name}", "", *table(results, study, options.seeds))
    )
    gpu = f"On {torch.cuda.get_device_name()}." if device.type == "cuda" else ""
    page = f"{paragraph(machine(), gpu)}\n{text}\n"
    print(page)
    if options.table:
        options.table.write_text(page)


if __name__ == "__main__":
    sys.exit(main())
