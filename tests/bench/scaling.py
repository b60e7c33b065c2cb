"""One process against two, and what a cost model says of them and of machines that are not at hand.

    python tests/bench/scaling.py --eurosat DIR --work DIR --table scaling.md

The model has five numbers, each measured by itself: images per second of one process at its share of the batch, bytes
a second of an all-reduce, the time of an agreement, images decoded per second and core, and the size of an image. It
is then asked for the epoch of two processes, which is measured too: the training command, alone and by torchrun, in
turns, with one thread a process, on the same images with the same batch.

What follows for other machines is computed, with figures that are given (``--gpu_images_per_second`` and others) and
not measured.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from runs import flags_of, link_images, machine, paragraph, tell

_PROBE = """
import json, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
gradients, flags = torch.zeros({numbers}), torch.zeros(2, dtype=torch.int64)
found = {{}}
for name, tensor, times in (("reduce", gradients, 5), ("agree", flags, 100)):
    dist.all_reduce(tensor)
    began = time.perf_counter()
    for _ in range(times):
        dist.all_reduce(tensor)
    found[name] = (time.perf_counter() - began) / times
if dist.get_rank() == 0:
    print("found", json.dumps(found), flush=True)
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Costs:
    """What a training step is made of.

    Attributes:
        images_per_second: of one process: forward, backward and update of its share of a batch.
        gradient_bytes: four for each trained parameter.
        bytes_per_second: of each process's link while gradients are added up.
        agreement: seconds of the message by which processes agree to log, save and stop.
        overlap: share of the computing in which gradients already travel: the backward pass of a GPU; nothing on a
            CPU, whose cores do both.
        decoded_per_second: images, by one core.
        cores: that decode beside each process; 0: the images are decoded already.
        image_bytes: of a file.
    """

    images_per_second: float
    gradient_bytes: float
    bytes_per_second: float
    agreement: float = 0.0
    overlap: float = 0.0
    decoded_per_second: float = 0.0
    cores: float = 0.0
    image_bytes: float = 0.0

    def compute(self, batch: float, processes: int) -> float:
        """Seconds of a step's computing."""
        return batch / processes / self.images_per_second

    def exchange(self, processes: int) -> float:
        """Seconds in which gradients are added up: each travels around the ring twice (Patarasuk & Yuan, 2009)."""
        if processes == 1:
            return 0.0
        return 2 * (processes - 1) / processes * self.gradient_bytes / self.bytes_per_second + self.agreement

    def step(self, batch: float, processes: int) -> float:
        """Seconds of a step."""
        compute = self.compute(batch, processes)
        waiting = max(0.0, self.exchange(processes) - self.overlap * compute)
        decoding = batch / processes / (self.decoded_per_second * self.cores) if self.cores else 0.0
        return max(compute + waiting, decoding)

    def cores_needed(self, batch: float, processes: int) -> float:
        """Cores that must decode beside each process so that it does not wait."""
        unlimited = replace(self, cores=0.0)
        return batch / processes / unlimited.step(batch, processes) / self.decoded_per_second

    def bytes_read(self, batch: float, processes: int) -> float:
        """Bytes a second that the storage must give to all processes together."""
        return batch / self.step(batch, processes) * self.image_bytes


def link_subset(root: Path, target: Path, images: int) -> Path:
    """Class folders with links to so many images in all."""
    shutil.rmtree(target, ignore_errors=True)
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    for one in classes:
        found = sorted(path for path in one.iterdir() if path.is_file())
        link_images(random.Random(one.name).sample(found, images // len(classes)), target / one.name)
    return target


def train(processes: int, batch: int, options: argparse.Namespace, data: Path) -> float:
    """Images per second of the training command, its first epoch left out."""
    folder = options.work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    flags = flags_of(
        backbone=options.backbone,
        pretrained="false",
        image_size=options.image_size,
        batch_size=batch,
        num_epochs=3,
        dataset_path=data,
        log_dir=folder / "logs",
        checkpoint_dir=folder / "checkpoints",
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launcher, "-m", "sat_vg.backbone_finetuning.train", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAT_VG_CACHE": str(options.work / "cache")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    lines = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
    later = [line for line in lines if "val_accuracy" in line][1:]
    images = sum(line["images_per_second"] * line["seconds"] for line in later)
    return images / sum(line["seconds"] for line in later)


def probe(numbers: int, folder: Path) -> dict[str, float]:
    """Seconds of adding up so many float32 numbers over two processes, and of an agreement."""
    script = folder / "probe.py"
    script.write_text(_PROBE.format(numbers=numbers))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.partition("found ")[2])
    return found


def decoded_per_second(images: list[Path]) -> float:
    """Images that one core decodes in a second."""
    from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb

    began = time.perf_counter()
    for path in images:
        decode_rgb(path)
    return len(images) / (time.perf_counter() - began)


def measured(options: argparse.Namespace) -> list[str]:
    """The tables of what was measured and predicted."""
    from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

    data = link_subset(options.eurosat, options.work / "images", options.images)
    model = FineTuneModel(options.backbone, 10, pretrained=False, image_size=options.image_size)
    numbers = sum(model.parameter_counts().values())
    batch, rows = options.batch_size, []
    for _ in range(options.pairs):
        link = probe(numbers, options.work)
        alone, half, both = (train(n, b, options, data) for n, b in ((1, batch), (1, batch // 2), (2, batch)))
        # Two processes, one all-reduce: each byte crosses the link once.
        costs = Costs(half, 4 * numbers, 4 * numbers / link["reduce"], link["agree"])
        rows.append({
            "alone": batch / alone, "both": batch / both, "predicted": costs.step(batch, 2),
            "compute": costs.compute(batch, 2), "exchange": costs.exchange(2),
        })  # fmt: skip

    def of(name: str) -> str:
        values = [1000 * row[name] for row in rows]
        return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"

    def quotient(one: str, other: str) -> str:
        values = [row[one] / row[other] for row in rows]
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    files = sorted(path for path in data.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files) / len(files)
    return [
        paragraph(
            f"{options.backbone} at {options.image_size} pixels, {numbers / 1e6:.1f} M parameters, so "
            f"{4 * numbers / 2**20:.0f} MiB of gradients a step; batch {batch}; EuroSAT, {len(files)} images; one "
            f"thread a process; {options.pairs} rounds in turns: median (smallest to largest).",
        ),
        "",
        "| a step, in ms | |",
        "|---|---|",
        f"| one process, whole batch | {of('alone')} |",
        f"| two processes, half each | {of('both')} |",
        f"| of that, by the model: computing half a batch | {of('compute')} |",
        f"| of that, by the model: adding up gradients, and the agreement | {of('exchange')} |",
        f"| two processes, predicted | {of('predicted')} |",
        f"| **predicted / measured** | {quotient('predicted', 'both')} |",
        f"| **speed of two / speed of one** | {quotient('alone', 'both')} |",
        "",
        paragraph(
            f"Decoding: {decoded_per_second(files[:500]):.0f} images a second and core (JPEG, 64 pixels, "
            f"{size / 1024:.1f} KiB)."
        ),
    ]


@dataclass(frozen=True)
class DataSet:
    """A data set as the model sees it.

    Attributes:
        name: as it is known.
        images: in training.
        image_bytes: of a file, on average.
        decoded_per_second: by one core.
    """

    name: str
    images: int
    image_bytes: float
    decoded_per_second: float


SETS = (
    DataSet("EuroSAT", 21_600, 3.3e3, 8000.0),
    DataSet("ImageNet-1k", 1_281_167, 110e3, 150.0),
    DataSet("BigEarthNet, 12 bands", 237_871, 250e3, 100.0),
)


def computed(options: argparse.Namespace) -> list[str]:
    """The table of machines that are not at hand."""
    lines = [
        "| training images | GPUs | batch | a step, ms | of it waiting for gradients | an epoch | storage must give "
        "| cores that decode, a GPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data in SETS:
        for gpus in (1, 8, 64):
            batch = options.gpu_batch * gpus
            link = options.link_within if gpus <= 8 else options.link_between
            costs = Costs(
                options.gpu_images_per_second, 4 * options.gpu_parameters, link * 2**30, 1e-4 if gpus <= 8 else 3e-4,
                overlap=2 / 3, decoded_per_second=data.decoded_per_second, image_bytes=data.image_bytes,
            )  # fmt: skip
            step, compute = costs.step(batch, gpus), costs.compute(batch, gpus)
            seconds = data.images / batch * step
            epoch = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
            waiting = f"{100 * (step - compute) / step:.0f} %"
            lines.append(
                f"| {data.name} | {gpus} | {batch} | {1000 * step:.0f} | {waiting} | {epoch} "
                f"| {costs.bytes_read(batch, gpus) / 2**20:.0f} MiB/s | {costs.cores_needed(batch, gpus):.1f} |"
            )
    return [
        paragraph(
            f"Given, not measured: {options.gpu_images_per_second:g} images a second and GPU (ResNet-50 at 224 "
            f"pixels, mixed precision), {options.gpu_parameters / 1e6:g} M parameters, {options.gpu_batch} images a "
            f"GPU, {options.link_within:g} GiB/s between the GPUs of a machine and {options.link_between:g} GiB/s "
            "a GPU between machines, two thirds of a step (the backward pass) hide what travels; sizes and decoding "
            "speeds of files: "
            + "; ".join(f"{s.name} {s.image_bytes / 1e3:g} kB, {s.decoded_per_second:g} a second" for s in SETS)
            + ". With your own: `--gpu_images_per_second` and the like."
        ),
        "",
        *lines,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eurosat", type=Path, help="folder of the 10 class folders; without it nothing is measured")
    parser.add_argument("--work", type=Path, default=Path("scaling"), help="folder for links and what runs write")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--pairs", type=int, default=4, help="rounds of measurements in turns")
    parser.add_argument("--gpu_images_per_second", type=float, default=1000.0, help="of one GPU; an assumption")
    parser.add_argument("--gpu_parameters", type=float, default=25.6e6)
    parser.add_argument("--gpu_batch", type=int, default=64, help="images of a step on each GPU")
    parser.add_argument("--link_within", type=float, default=100.0, help="GiB/s between GPUs of a machine")
    parser.add_argument("--link_between", type=float, default=5.0, help="GiB/s a GPU between machines")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    shown = f"--eurosat {options.eurosat.name} --work DIR " if options.eurosat else ""
    lines = ["# Scaling", "", paragraph(machine()), ""]
    lines += ["```", f"python tests/bench/scaling.py {shown}--table scaling.md", "```", ""]
    if options.eurosat:
        lines += ["## One process and two", "", *measured(options), ""]
    lines += ["## Other machines, computed", "", *computed(options), ""]
    tell("\n".join(lines), options.table, failed=0)


if __name__ == "__main__":
    main()
