"""The rules of ``sat-vg recommend``: what fits, and of that what is most accurate on ImageNet for its cost."""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from sat_vg.backbone_finetuning.commands.recommend.cli import RecommendOptions
from sat_vg.backbone_finetuning.configs.choices import Strategy
from sat_vg.backbone_finetuning.models.networks.costs import BackboneCosts, costs_were_measured, read_costs
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.terminal import say

GPU_SIZES = (8, 16, 24, 80)  # GB as they are sold, which is GiB of memory
_SHARE = 0.8  # of the memory, for a step; as batch_size = auto takes
_USUAL_BATCH, _SMALLEST_BATCH, _STEPS_PER_EPOCH = 32, 8, 20
_MOBILE_PARAMETERS, _MOBILE_FLOPS = 6e6, 1e9
_AS_GOOD = 1.0  # points of ImageNet's top-1; what is cheaper by so little less is taken
# Training images up to which a strategy is recommended, why, and the most parameters of a backbone for so many.
_STRATEGIES: tuple[tuple[float, Strategy, str, float], ...] = (
    (100, "linear_probe", "too few images to change more than the head", 15e6),
    (1_000, "lp_ft", "on few images a probe first gains over a full fine-tune", 30e6),
    (20_000, "lp_ft", "a probe first gains, or costs nothing", 100e6),
    (math.inf, "full", "enough images for all stages from the start", math.inf),
)


@dataclass(frozen=True)
class Recommendation:
    """What to begin with.

    Attributes:
        backbone: its name.
        strategy: as in the configuration.
        batch_size: images of a step.
        reasons: the decisions in lines.
        candidates: the backbones that came into question, the best first.
        command: of the training.
    """

    backbone: str
    strategy: Strategy
    batch_size: int
    reasons: tuple[str, ...]
    candidates: tuple[BackboneCosts, ...]
    command: str


def show_recommendation(options: RecommendOptions) -> None:
    """Print the recommendation, or the table of all backbones; raises as ``recommend``."""
    if options.table:
        asked = ("images", "memory_gib", "latency_ms", "mobile")
        unused = ["DATA"] if options.data else [f"--{name}" for name in asked if getattr(options, name)]
        if unused:
            raise ConfigError(
                f"{unused[0]} has no effect with --table, which shows all backbones; leave one of the two out"
            )
        rows = list(read_costs().values())
        say(json.dumps([asdict(row) for row in rows], indent=1) if options.json else _cost_table(rows, options))
        return
    found = recommend(options)
    if options.json:
        say(json.dumps({**asdict(found), "candidates": [asdict(row) for row in found.candidates]}, indent=1))
        return
    for reason in found.reasons:
        say(reason)
    say(f"\n{_cost_table(found.candidates[: options.rows], options)}")
    rough = "Times are in fp32, of one round beside other work, so rough; make costs measures them on this machine."
    say(f"{costs_were_measured()}\n{rough}\n\nto begin with:\n  {found.command}")


def recommend(options: RecommendOptions) -> Recommendation:
    """A backbone, a strategy and a batch size. Raises UserError where the data cannot be read, or nothing fits."""
    images, counting = _count_images(options)
    memory, whose = _memory(options)
    strategy, why, most_parameters = next(
        (strategy, why, most) for limit, strategy, why, most in _STRATEGIES if images <= limit
    )
    reasons = [f"{counting}: strategy {strategy}, {why}"]
    candidates = [row for row in read_costs().values() if row.top_1 is not None]
    limits: list[tuple[str, Callable[[BackboneCosts], object]]] = []
    if options.mobile:
        what = "for phones: 6 M parameters and 1 GFLOP or fewer"
        limits.append((what, lambda row: row.parameters <= _MOBILE_PARAMETERS and row.flops <= _MOBILE_FLOPS))
    if (pixels := options.image_size) is not None:
        limits.append((f"images of {pixels} pixels", lambda row: _takes_size(row, pixels)))
    if most_parameters < math.inf:
        few = f"{most_parameters / 1e6:g} M parameters or fewer, for so many images"
        limits.append((few, lambda row: row.parameters <= most_parameters))
    in_fp32 = _computes_in_fp32(options)
    step = f"a step of {_SMALLEST_BATCH} images in four fifths of {whose}, in {'fp32' if in_fp32 else 'bf16'}"

    def room(row: BackboneCosts) -> int:
        """Images of a step that fit, 0 if fewer than the smallest batch; a probe needs a forward pass alone."""
        largest_batch = row.largest_probe_batch if strategy == "linear_probe" else row.largest_batch
        fits = largest_batch(_SHARE * memory, options.image_size, in_fp32)
        return fits if fits >= _SMALLEST_BATCH else 0

    limits.append((step, room))
    if (most := options.latency_ms) is not None:
        measured = sum(row.milliseconds is not None for row in candidates)
        quick = f"{most:g} ms an image or less, of the {measured} backbones whose time was measured"
        limits.append((quick, lambda row: (row.milliseconds or math.inf) * row.growth(pixels) <= most))
    for what, holds in limits:
        left = [row for row in candidates if holds(row)]
        if not left:
            raise ConfigError(f"no backbone is left with {what}; allow more of it, or fewer limits together")
        reasons.append(f"{what}: {len(left)} of {len(candidates)} backbones")
        candidates = left
    candidates.sort(key=lambda row: -(row.top_1 or 0))
    as_good = [row for row in candidates if (row.top_1 or 0) >= (candidates[0].top_1 or 0) - _AS_GOOD]
    chosen = min(as_good, key=lambda row: row.flops)
    cheapest = f"within {_AS_GOOD:g} point of the best on ImageNet the one with the fewest FLOPs"
    reasons.append(f"{chosen.name}: of the {len(as_good)} {cheapest}")
    candidates.sort(key=lambda row: row is not chosen)
    batch = _batch(images, room(chosen))
    words = ["sat-vg", "train", "--dataset_path", options.data or "DIR", "--backbone", chosen.name]
    words += ["--strategy", strategy, "--batch_size", str(batch)]
    words += ["--image_size", str(options.image_size)] if options.image_size else []
    words += ["--mixed_precision", "false"] if options.mixed_precision is False else []
    return Recommendation(chosen.name, strategy, batch, tuple(reasons), tuple(candidates), shlex.join(words))


def _count_images(options: RecommendOptions) -> tuple[int, str]:
    if options.images is not None and options.data is not None:
        raise ConfigError("the number of images is given twice, by DATA and by --images; leave one of the two out")
    if options.images is not None:
        return options.images, counted(options.images, "training image")
    if options.data is None:
        raise ConfigError("how many images are there? sat-vg recommend DATA counts them, or say so: --images 1200")
    # Imported only now: counting needs torch, and nothing else here does.
    from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
    from sat_vg.backbone_finetuning.training.preparation import load_splits

    splits = load_splits(FinetuneConfig(dataset_path=options.data))
    number, classes = len(splits.train), counted(len(splits.class_names), "class", "classes")
    return number, f"{counted(number, 'training image')} in {classes}"


def _memory(options: RecommendOptions) -> tuple[float, str]:
    if options.memory_gib is not None:
        return options.memory_gib * 2**30, f"{options.memory_gib:g} GiB"
    import torch  # only now: where the memory is given, nothing needs it

    from sat_vg.backbone_finetuning.utils.machine_memory import machine_memory

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        return total, f"this GPU's {total / 2**30:.0f} GiB"
    total = machine_memory().total
    return total, f"this machine's {total / 2**30:.0f} GiB"


def _computes_in_fp32(options: RecommendOptions) -> bool:
    """Whether a step computes in fp32: as asked for, or as this machine does where the memory is its own."""
    if options.mixed_precision is not None:
        return not options.mixed_precision
    if options.memory_gib is not None or options.table:
        return False
    import torch  # only now, as for the memory

    from sat_vg.backbone_finetuning.utils.precision import choose_device, choose_precision

    return choose_precision(choose_device("auto"), mixed_precision=True).autocast_dtype is torch.float32


def _takes_size(row: BackboneCosts, pixels: int) -> bool:
    from sat_vg.backbone_finetuning.models.networks.table import BACKBONES  # and torch, which nothing else here needs

    family = BACKBONES[row.name].family
    return pixels >= family.smallest_image and pixels % family.image_multiple(row.name) == 0


def _batch(images: int, room: int) -> int:
    """The batch by the number of images, or what fits; never in parts, which harm networks with batch norm."""
    most = min(max(4, min(_USUAL_BATCH, images // _STEPS_PER_EPOCH)), room)
    return 1 << (most.bit_length() - 1)


def _cost_table(rows: Sequence[BackboneCosts], options: RecommendOptions) -> str:
    header = (
        "backbone",
        "pixels",
        "top-1",
        "top-5",
        "M params",
        "GFLOPs",
        "images/s",
        "ms",
        *(f"{g} GB" for g in GPU_SIZES),
    )
    in_fp32 = _computes_in_fp32(options)
    table = text_table(header, [table_cells(row, options.image_size, in_fp32) for row in rows])
    what = (
        f"images of a training step of all stages in {'fp32' if in_fp32 else 'bf16'} that fit into four fifths of it"
    )
    return f"{table}\n\n{', '.join(header[-len(GPU_SIZES) :])}: {what}."


def table_cells(row: BackboneCosts, image_size: int | None = None, in_fp32: bool = False) -> tuple[str, ...]:
    """A row of the table: what the weights reach, what the network costs, and the batches for ``GPU_SIZES``."""
    growth = row.growth(image_size)
    batches = (row.largest_batch(_SHARE * gib * 2**30, image_size, in_fp32) for gib in GPU_SIZES)
    return (
        row.name,
        str(image_size or row.image_size),
        *("-" if share is None else f"{share:.1f}" for share in (row.top_1, row.top_5)),
        f"{row.parameters / 1e6:.1f}",
        f"{growth * row.flops / 1e9:.2f}",
        "-" if row.images_per_second is None else f"{row.images_per_second / growth:.1f}",
        "-" if row.milliseconds is None else f"{row.milliseconds * growth:.0f}",
        *(str(1 << (batch.bit_length() - 1)) if batch else "-" for batch in batches),
    )
