"""What every backbone costs and reaches on ImageNet: the numbers of ``sat-vg recommend`` and the table of its page.

    make costs        python tests/bench/backbone_costs.py

Parameters, FLOPs and memory of a training step and of a forward pass are counted on tensors without values, and the
speed of inference is measured on this machine, with random weights, at the image size of each backbone's best
published weights; accuracies are those that torchvision gives with these weights. Written are ``backbone_costs.json``
beside the listing of backbones, and the table in docs/choosing.md. Measured is what is missing, so that stopped it
goes on where it was. On another machine, or with other versions, and with ``--anew speed``, all speeds are forgotten
first. ``--only NAMES``: of some; ``--table`` writes the table alone.
"""

import argparse
import gc
import json
import re
import statistics
import sys
import time
from pathlib import Path

import torch
import torchvision
from counted_memory import forward_bytes_per_image, measure_step_memory, without_values
from runs import machine, paragraph

from sat_vg.backbone_finetuning.commands.recommend.run import GPU_SIZES, table_cells
from sat_vg.backbone_finetuning.evaluation.costs import (
    Network,
    Timing,
    count_flops,
    count_parameters,
    images_per_second,
)
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.costs import COSTS_FILE, read_costs
from sat_vg.backbone_finetuning.models.networks.facts import read_facts
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, find_backbone, usual_size
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.safe_files import write_text

PAGE = Path(__file__).parents[2] / "docs/choosing.md"
_CLASSES = 1000  # ImageNet's
_BATCH = 4
_FORMATS = {"": torch.bfloat16, "_fp32": torch.float32}  # by the ending of their columns
_NO_SPEED = {"images_per_second": None, "milliseconds": None}


def measure_costs(name: str) -> dict[str, float | None]:
    """The row of a backbone but for its speed."""
    size = usual_size(find_backbone(name))
    model = FineTuneModel(name, _CLASSES, pretrained=False, image_size=size)
    # Whatever this machine computes in: tensors without values have any format.
    formats = {suffix: Precision(torch.device("cpu"), dtype) for suffix, dtype in _FORMATS.items()}
    formats[""].place_model(model)
    costs: dict[str, float | None] = {"image_size": size}
    costs["top_1"], costs["top_5"] = accuracies(name)
    costs["parameters"] = count_parameters(model)
    with without_values(model):  # the largest networks take seconds
        costs["flops"] = count_flops(model, size)
        for suffix, precision in formats.items():
            memory = measure_step_memory(model, precision)
            costs[f"fixed_bytes{suffix}"] = memory.fixed
            costs[f"bytes_per_image{suffix}"] = memory.per_image
            costs[f"forward_bytes_per_image{suffix}"] = forward_bytes_per_image(model, precision)
    return costs


def measure_speed(name: str) -> dict[str, float | None]:
    """Images per second in batches, and the milliseconds of a single image."""
    size = usual_size(find_backbone(name))
    model = FineTuneModel(name, _CLASSES, pretrained=False, image_size=size)
    precision = choose_precision(torch.device("cpu"), mixed_precision=True)
    precision.place_model(model)
    network = {name: Network(model, size, precision)}
    single, batched = (
        images_per_second(network, Timing(count, rounds=1, seconds=0.1))[name] for count in (1, _BATCH)
    )
    return {"images_per_second": round(batched, 2), "milliseconds": round(1000 / single, 2)}


def accuracies(name: str) -> tuple[float | None, float | None]:
    """Top-1 and top-5 of the best published weights on ImageNet, in per cent."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return None, None
    best = torchvision.models.get_model_weights(name).DEFAULT
    found = best.meta["_metrics"]["ImageNet-1K"]
    return found["acc@1"], found["acc@5"]


def write_costs(kept: dict[str, dict[str, float | None]], measured: str) -> None:
    """The file of the numbers, which is gone on with where this is stopped; ``measured``: where the speeds were."""
    rows = {name: kept[name] for name in BACKBONES if name in kept}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    write_text(COSTS_FILE, f'{{"measured": {json.dumps(measured)},\n"backbones": {{\n{lines}\n}}}}\n')
    read_costs.cache_clear()


def _place(measured: str) -> str:
    """Machine and versions, without the date."""
    return measured.partition(" on ")[2]


def update(names: list[str], anew: str | None, most_flops: float) -> None:
    """Measure what is missing; ``anew``: ``costs`` or ``speed`` again as well."""
    content = json.loads(COSTS_FILE.read_text()) if COSTS_FILE.exists() else {"measured": "", "backbones": {}}
    kept, measured = content["backbones"], content["measured"]
    here = f"{machine().removesuffix('; one thread a run.')}, {counted(torch.get_num_threads(), 'thread')}."
    is_elsewhere = most_flops > 0 and _place(measured) != _place(here)
    if anew == "speed" or is_elsewhere:  # all at first, so that the command without --anew goes on with it
        kept |= {name: {**row, **_NO_SPEED} for name, row in kept.items() if is_elsewhere or name in names}
        measured = here
        write_costs(kept, measured)
    for name in names:
        began = time.perf_counter()
        if anew == "costs" or name not in kept:
            speed = {key: kept.get(name, _NO_SPEED)[key] for key in _NO_SPEED}
            kept[name] = {**measure_costs(name), **speed}
            write_costs(kept, measured)
        if kept[name]["milliseconds"] is None and kept[name]["flops"] <= most_flops:
            kept[name] |= measure_speed(name)
            measured = (
                f"{machine().removesuffix('; one thread a run.')}, {counted(torch.get_num_threads(), 'thread')}."
            )
            write_costs(kept, measured)
        gc.collect()
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def write_table() -> None:
    """The table of the page, between its marks."""
    rows = list(read_costs().values())
    header = ("backbone", "pixels", "top-1, %", "top-5, %", "M params", "GFLOPs", "images/s", "ms an image")
    header += tuple(f"{gib} GB" for gib in GPU_SIZES)
    lines = [
        header,
        ("---", *["---:"] * (len(header) - 1)),
        *map(table_cells, sorted(rows, key=lambda r: -(r.top_1 or 0))),
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    told = json.loads(COSTS_FILE.read_text())["measured"]
    missing = [name for name in BACKBONES if name not in read_costs()]
    told += f" Not measured yet, and so not recommended: {', '.join(missing)}." if missing else ""
    text, count = re.subn(
        r"(<!-- costs -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{paragraph(told)}\n\n{table}\n{m[2]}",
        PAGE.read_text(),
        flags=re.S,
    )
    if not count:
        raise SystemExit(f"{PAGE} has no marks for the table")
    write_text(PAGE, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BACKBONES), metavar="NAME")
    parser.add_argument("--table", action="store_true")
    parser.add_argument(
        "--speed_up_to", type=float, default=130, help="GFLOPs of the networks whose speed is measured"
    )
    parser.add_argument("--anew", choices=("costs", "speed"), help="measure this again where it is there")
    given = parser.parse_args()
    facts = read_facts()
    if not given.table:
        names = sorted(given.only or BACKBONES, key=lambda name: facts[name].parameters)
        update(names, given.anew, 1e9 * given.speed_up_to)
    write_table()
    rates = [row.images_per_second for row in read_costs().values() if row.images_per_second]
    print(f"{len(rates)} backbones, median {statistics.median(rates):.1f} images/s; the table is in {PAGE}")


if __name__ == "__main__":
    main()
