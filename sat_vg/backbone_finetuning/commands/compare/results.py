"""The files of a comparison: costs, tables, the chart, the page, and TensorBoard's hyperparameters."""

import io
import json
import platform
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from sat_vg.backbone_finetuning.commands.compare.cell_files import CellResult, read_json
from sat_vg.backbone_finetuning.commands.compare.cells import OWN_FIELDS, Cell, parse_weights
from sat_vg.backbone_finetuning.commands.compare.cli import CompareOptions
from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing
from sat_vg.backbone_finetuning.configs.combinations import LP_FT_DEFAULTS
from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME, FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import PositiveFloat, PositiveInt, rules_of
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.evaluation.costs import (
    Network,
    Timing,
    count_flops,
    count_parameters,
    images_per_second,
)
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL, current_versions
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.comparison_page import as_html, draw_comparison
from sat_vg.backbone_finetuning.reports.comparison_report import (
    OPTIONAL,
    Comparison,
    Failure,
    Limits,
    Row,
    as_csv,
    as_markdown,
    as_text,
    ranked,
)
from sat_vg.backbone_finetuning.reports.pages import figure_as_svg
from sat_vg.backbone_finetuning.training.preparation import choose_hardware
from sat_vg.backbone_finetuning.utils.cores import usable_cores
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.terminal import say

NAME = "comparison"
_COSTS = "costs.json"
_SHOWN = ("map", "accuracy", "macro_f1", "training_seconds", "peak_gib", "top_5", "gpu_gib")  # in TensorBoard


@dataclass(frozen=True)
class Finished:
    """A cell with its results."""

    cell: Cell
    result: CellResult


@dataclass(frozen=True)
class NetworkCosts:
    """Costs of a network, which do not depend on its weights: see ``evaluation.costs``."""

    parameters: PositiveInt
    flops: PositiveInt
    images_per_second: PositiveFloat


def write_results(
    out: Path, finished: Sequence[Finished], failures: Sequence[Failure], splits: Splits, limits: Limits, command: str
) -> Comparison:
    """Measure the costs of the networks, rank, print the table, and write all files.

    ``splits`` are the images of the first cell's seed. Raises WriteError where a file cannot be written.
    """
    timing = Timing()
    pages = [(one, one.cell.folder / "evaluation" / "report.html") for one in finished]
    remedy = ": make room and run the same command again; what is trained stays trained"
    with explaining_writing(f"the results cannot be written to {str(out)!r}", remedy):
        costs = measure_costs(out / _COSTS, finished, timing)
        comparison = Comparison(
            rows=ranked(rows_of(finished, costs)),
            val_images=finished[0].result.val_images,
            limits=limits,
            notes=tuple(_notes(finished, splits, _device(finished[0].cell.config), timing)),
            failures=tuple(failures),
            command=command,
            settings=tuple(_settings([one.cell.config for one in finished])),
            subtitle=_subtitle(finished, splits),
            reports=tuple((one.cell.name, path.relative_to(out).as_posix()) for one, path in pages if path.is_file()),
        )
        chart, figure = comparison.measure.lower(), draw_comparison(comparison)
        write_text(out / f"{chart}.svg", figure_as_svg(figure).decode())
        with atomic_write(out / f"{chart}.png") as file:
            figure.savefig(file, dpi=200)
        write_text(out / f"{NAME}.md", as_markdown(comparison, f"{chart}.png"))
        write_text(out / f"{NAME}.csv", as_csv(comparison))
        write_text(out / f"{NAME}.html", as_html(comparison))
        write_text(out / f"{NAME}.json", json.dumps(_as_data(comparison, finished), indent=1) + "\n")
        _write_hyperparameters(out / "tensorboard", finished, costs)
    say(f"\n{as_text(comparison)}\n\n{comparison.recommendation}")
    say(f"\nwritten to {out}: {NAME}.html, .md, .csv, .json and the chart {chart}.png, .svg")
    say(f"  TensorBoard  tensorboard --logdir {out / 'tensorboard'}  (tab HParams)")
    return comparison


def measure_costs(record: Path, finished: Sequence[Finished], timing: Timing) -> dict[str, NetworkCosts]:
    """Costs by ``network_key``; measured together, or as written down by an earlier call in the same conditions."""
    wanted = {network_key(one.cell.config): one.cell for one in finished}
    conditions = {
        "networks": {key: _device(cell.config) for key, cell in sorted(wanted.items())},
        "timing": asdict(timing),
        "torch": str(torch.__version__),
        "host": platform.node(),
    }
    known = read_json(record)
    stored = known.get("costs") if known.get("conditions") == json.loads(json.dumps(conditions)) else None
    if isinstance(stored, dict) and set(stored) == set(wanted) and all(map(_are_costs, stored.values())):
        return {key: NetworkCosts(**values) for key, values in stored.items()}
    networks = {
        key: Network(
            FineTuneModel.load_checkpoint(cell.folder / "checkpoints" / BEST_MODEL),
            cell.image_size,
            _precision(cell.config),
        )
        for key, cell in wanted.items()
    }
    counted = {
        key: (count_parameters(one.model), count_flops(one.model, one.image_size)) for key, one in networks.items()
    }
    speeds = images_per_second(networks, timing)
    costs = {key: NetworkCosts(*counted[key], speeds[key]) for key in networks}
    content = {"conditions": conditions, "costs": {key: asdict(one) for key, one in costs.items()}}
    write_text(record, json.dumps(content, indent=1) + "\n")
    return costs


def _are_costs(values: Any) -> bool:
    rules = rules_of(NetworkCosts)
    is_whole = isinstance(values, dict) and set(values) == set(rules)
    return is_whole and all(rules[name].holds(value) for name, value in values.items())


def _precision(config: FinetuneConfig) -> Precision:
    with redirect_stdout(io.StringIO()):  # printed already when the comparison began
        return choose_hardware(config)


def _device(config: FinetuneConfig) -> str:
    return f"{_precision(config)}, {counted(torch.get_num_threads(), 'thread')}"


def network_key(config: FinetuneConfig) -> str:
    """Key of a network's costs: its name and the size of its images."""
    return f"{config.backbone} at {config.image_size}"


def rows_of(finished: Sequence[Finished], costs: Mapping[str, NetworkCosts]) -> list[Row]:
    """One row for each backbone with a strategy."""
    groups: dict[tuple[str, str | None], list[Finished]] = {}
    for one in finished:
        groups.setdefault((one.cell.config.backbone, one.cell.config.strategy), []).append(one)
    rows = []
    for (backbone, strategy), members in groups.items():
        config, results = members[0].cell.config, [member.result for member in members]
        rows.append(
            Row(
                backbone=backbone,
                strategy=str(strategy),
                image_size=members[0].cell.image_size,
                seeds=tuple(member.cell.config.seed for member in members),
                accuracies=tuple(result.accuracy for result in results),
                macro_f1=tuple(result.macro_f1 for result in results),
                maps=_of_all([result.map for result in results]),
                top_5=_of_all([result.top_5 for result in results]),
                gpu_gib=_of_all([result.gpu_gib for result in results]),
                training_seconds=tuple(result.training_seconds for result in results),
                peak_gib=tuple(result.peak_gib for result in results),
                train_losses=tuple(result.train_loss for result in results),
                val_losses=tuple(result.val_loss for result in results),
                **asdict(costs[network_key(config)]),
            )
        )
    return rows


def _of_all(values: Sequence[float | None]) -> tuple[float, ...] | None:
    """The values of all seeds; None where one has none."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _notes(finished: Sequence[Finished], splits: Splits, device: str, timing: Timing) -> list[str]:
    seeds = sorted({one.cell.config.seed for one in finished})
    config = finished[0].cell.config
    images = counted(finished[0].result.val_images, "validation image")
    if splits.val_is_drawn:
        split = (
            f"The seed draws the {images} ({100 * config.val_fraction:g} % of each class): the same in all rows for "
            "one seed, others for another."
        )
    elif config.split == "spatial" or config.group_column is not None:
        unit = "blocks of ground" if config.group_column is None else f"groups of {config.group_column!r}"
        split = f"The seed draws the {images} by {unit}: the same in all rows for one seed, others for another."
    else:
        split = f"The {images} of the data set's own split are the same for all seeds."
    sizes = sorted({one.cell.image_size for one in finished})
    pixels = " or ".join(f"{size} x {size}" for size in sizes)
    several = "mAP: the mean of the classes' average precisions. " if splits.train.is_multi_label else ""
    measure = "mAP" if splits.train.is_multi_label else "Accuracy"
    over = f"the seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"the one seed {seeds[0]}"
    return [
        f"{several}{measure} and macro F1 of best_model.pt, which is chosen on the same validation images: mean ± "
        f"standard deviation over {over}. {split} The seed also sets the order, the augmentation and the initial "
        "weights of the classifier.",
        "To the best: difference in percentage points. Within noise of: ranks from which a row does not differ, as 0 "
        "lies in the 95 % interval of the difference (Welch, 1947); with one seed this is unknown.",
        "Losses of the epoch of best_model.pt. Gap: validation loss minus training loss; a network with a larger gap "
        "than others overfits more. Augmentation raises the training loss.",
        f"Parameters with the classifier. FLOPs: forward pass of one image of {pixels} pixels, a multiplication and "
        f"an addition being two. Images/s: inference in batches of {timing.batch_size} on {device}, median of "
        f"{timing.rounds} rounds in which the networks took turns. Training, s: all epochs without validation and "
        "start. Peak GiB: the maximum main memory of a training process; GPU GiB: of its tensors on the GPU. Top 5: "
        "share of the images whose class is among the five most likely ones.",
    ]


def _subtitle(finished: Sequence[Finished], splits: Splits) -> str:
    configs = [one.cell.config for one in finished]
    name = configs[0].dataset or Path(str(configs[0].dataset_path)).name
    return (
        f"{counted(len({config.backbone for config in configs}), 'backbone')}, "
        f"{counted(len({config.strategy for config in configs}), 'strategy', 'strategies')}, "
        f"{counted(len({config.seed for config in configs}), 'seed')}, on {name}: "
        f"{counted(sum(map(len, splits.parts)), 'image')} in {counted(len(splits.class_names), 'class', 'classes')}"
    )


def _settings(configs: Sequence[FinetuneConfig]) -> list[tuple[str, str]]:
    """The settings that are no defaults, and those that differ between cells with where."""
    defaults, pairs = FinetuneConfig().to_dict(), []
    hidden = {*OWN_FIELDS, *(FIELDS_FREE_ON_RESUME - {"dataset_path", "device"})}
    # Of lp_ft what equals a default was chosen: left out, it would be what the strategy sets.
    chosen = LP_FT_DEFAULTS if any(config.strategy == "lp_ft" for config in configs) else {}
    for name in (name for name in defaults if name not in hidden):
        places: dict[str, list[str]] = {}
        for config in configs:
            places.setdefault(_shown(getattr(config, name)), []).append(f"{config.backbone} {config.strategy}")
        if len(places) == 1 and (name in chosen or next(iter(places)) != _shown(defaults[name])):
            pairs.append((name, next(iter(places))))
        elif len(places) > 1:
            pairs.append((name, "; ".join(f"{v}: {', '.join(dict.fromkeys(where))}" for v, where in places.items())))
    return pairs


def _shown(value: Any) -> str:
    """A value for the report; of an absolute path only the name, since reports are passed on."""
    is_path = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name or str(value) if is_path else str(value)


def command_of(options: CompareOptions, flags: Sequence[str]) -> str:
    """The command that gives these results, without folders of this machine."""
    defaults, words = CompareOptions(), ["sat-vg", "compare"]
    if options.data is not None:
        words.append(_shown(options.data))
    for name, value in vars(options).items():
        if name in ("data", "anew", "dry_run") or (value == getattr(defaults, name) and name != "out"):
            continue
        if name == "weights":
            value = ["=".join((backbone, _shown(path))) for backbone, path in parse_weights(value).items()]
        if isinstance(value, (tuple, list)):
            value = ",".join(map(str, value))
        words += [f"--{name}", f"{value:g}" if isinstance(value, float) else _shown(value)]
    return shlex.join([*words, *(["--", *map(_shown, flags)] if flags else [])])


def _as_data(comparison: Comparison, finished: Sequence[Finished]) -> dict[str, Any]:
    return {
        "schema": 1,
        "recommendation": comparison.recommendation,
        "rows": [
            {
                **{name: value for name, value in asdict(row).items() if name not in OPTIONAL or value is not None},
                "to_best": asdict(comparison.behind_best(row)),
                "within_noise_of": comparison.within_noise_of(place),
            }
            for place, row in enumerate(comparison.rows)
        ],
        "cells": [{"settings": one.cell.config.to_dict(), "result": one.result.to_dict()} for one in finished],
        "failures": [asdict(failure) for failure in comparison.failures],
        "notes": comparison.notes,
        "command": comparison.command,
        "versions": current_versions(),
        "cores": usable_cores(),
    }


def _write_hyperparameters(folder: Path, finished: Sequence[Finished], costs: Mapping[str, NetworkCosts]) -> None:
    """All cells in TensorBoard's table of hyperparameters, written anew each time so that nothing is there twice."""
    shutil.rmtree(folder, ignore_errors=True)
    hidden = {"checkpoint_dir", "log_dir", "resume", "dataset_path"}
    with SummaryWriter(str(folder)) as writer:
        for one in finished:
            config = {name: value for name, value in one.cell.config.to_dict().items() if name not in hidden}
            plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in config.items()}
            numbers = {name: getattr(one.result, name) for name in _SHOWN} | asdict(
                costs[network_key(one.cell.config)]
            )
            metrics = {f"hparam/{name}": value for name, value in numbers.items() if value is not None}
            writer.add_hparams(plain, metrics, run_name=one.cell.folder.name)
