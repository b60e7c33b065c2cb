"""What every backbone costs and reaches on ImageNet: the numbers of ``sat-vg recommend`` and the table of its page.

    make costs        python tests/bench/backbone_costs.py

Parameters, FLOPs, memory of a training step and speed of inference are measured on this machine, with random weights,
at the image size of each backbone's best published weights; accuracies are those that torchvision gives with these
weights. Written are ``backbone_costs.json`` beside the listing of backbones, and the table in docs/choosing.md.
Stopped, it goes on where it was; ``--anew`` measures all again, ``--only NAMES`` some; ``--table`` writes the table
alone.
"""

import argparse
import copy
import gc
import json
import re
import statistics
import sys
import time
from pathlib import Path

import torch
import torchvision
from runs import machine, paragraph
from torch._subclasses.fake_tensor import FakeTensorMode

from sat_vg.backbone_finetuning.commands.recommend.run import GPU_SIZES, table_cells
from sat_vg.backbone_finetuning.evaluation.costs import (
    Network,
    Timing,
    count_flops,
    count_parameters,
    images_per_second,
)
from sat_vg.backbone_finetuning.evaluation.step_memory import measure_step_memory
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.costs import COSTS_FILE, read_costs
from sat_vg.backbone_finetuning.models.networks.facts import read_facts
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, find_backbone, usual_size
from sat_vg.backbone_finetuning.utils.precision import choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.safe_files import write_text

PAGE = Path(__file__).parents[2] / "docs/choosing.md"
_CLASSES = 1000  # ImageNet's
_BATCH = 4


def measure(name: str, most_flops: float) -> dict[str, float | None]:
    """The row of a backbone; the speed of a larger one than ``most_flops`` is not measured."""
    size = usual_size(find_backbone(name))
    model = FineTuneModel(name, _CLASSES, pretrained=False, image_size=size)
    precision = choose_precision(torch.device("cpu"), mixed_precision=True)
    precision.place_model(model)
    parameters = count_parameters(model)
    network = Network(copy.deepcopy(model), size, precision)
    mode = FakeTensorMode()  # shapes and types alone, so the largest networks take seconds
    without_values(model, mode)
    with mode:
        flops = count_flops(model, size)
        memory = measure_step_memory(model, precision)
    rates = [
        None if flops > most_flops else images_per_second({name: network}, Timing(count, rounds=1, seconds=0.1))[name]
        for count in (1, _BATCH)
    ]
    top_1, top_5 = accuracies(name)
    return {
        "image_size": size,
        "top_1": top_1,
        "top_5": top_5,
        "parameters": parameters,
        "flops": flops,
        "fixed_bytes": memory.fixed,
        "bytes_per_image": memory.per_image,
        "images_per_second": rates[1] and round(rates[1], 2),
        "milliseconds": rates[0] and round(1000 / rates[0], 2),
    }


def without_values(model: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Put tensors without values in place of a model's weights."""
    for module in model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = torch.nn.Parameter(mode.from_tensor(weight.detach()), weight.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = mode.from_tensor(buffer)


def accuracies(name: str) -> tuple[float | None, float | None]:
    """Top-1 and top-5 of the best published weights on ImageNet, in per cent."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return None, None
    best = torchvision.models.get_model_weights(name).DEFAULT
    found = best.meta["_metrics"]["ImageNet-1K"]
    return found["acc@1"], found["acc@5"]


def write_costs(kept: dict[str, dict[str, float | None]]) -> None:
    """The file of the numbers, which is gone on with where this is stopped."""
    rows = {name: kept[name] for name in BACKBONES if name in kept}
    told = f"{machine().removesuffix('; one thread a run.')}, {counted(torch.get_num_threads(), 'thread')}."
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    write_text(COSTS_FILE, f'{{"measured": {json.dumps(told)},\n"backbones": {{\n{lines}\n}}}}\n')
    read_costs.cache_clear()


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
        "--speed_up_to", type=float, default=20, help="GFLOPs of the networks whose speed is measured"
    )
    parser.add_argument("--anew", action="store_true", help="measure again what is there")
    given = parser.parse_args()
    kept = json.loads(COSTS_FILE.read_text())["backbones"] if COSTS_FILE.exists() else {}
    facts = read_facts()
    names = sorted(given.only or BACKBONES, key=lambda name: facts[name].parameters)
    for name in [] if given.table else [name for name in names if given.anew or given.only or name not in kept]:
        began = time.perf_counter()
        kept[name] = measure(name, 1e9 * given.speed_up_to)
        gc.collect()
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        write_costs(kept)
    write_table()
    rates = [row.images_per_second for row in read_costs().values() if row.images_per_second]
    print(f"{len(rates)} backbones, median {statistics.median(rates):.1f} images/s; the table is in {PAGE}")


if __name__ == "__main__":
    main()
