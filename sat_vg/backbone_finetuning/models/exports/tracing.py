"""A part of a model as one graph, by ``torch.export``, for images of any size or of one."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from sat_vg.backbone_finetuning.models.exports.contract import Contract, ExportFailedError, ExportOptions
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError, UserError

# What torch's tracer and converters raise on a network that they cannot take.
REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, LookupError, AttributeError)
# What the tracer notes of where each line of the graph comes from: paths of this machine, and nothing that computes.
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


def why_fixed(model: FineTuneModel) -> str | None:
    """Why a trace for all sizes is not even tried, or None."""
    return model.row.family.why_traced_at_one_size


class Classifier(nn.Module):
    """``images [B, C, H, W]``, normalised → ``{"logits": [B, num_classes]}``."""

    def __init__(self, model: FineTuneModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.outputs = ("logits",)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits under their name."""
        return {"logits": self.model(images)}


class Extractor(nn.Module):
    """``images [B, C, H, W]``, normalised → feature maps by stage name."""

    def __init__(self, model: FineTuneModel) -> None:
        super().__init__()
        self.extractor = model.get_feature_extractor()
        self.unit = self.extractor.size_divisibility
        self.outputs = self.extractor.out_names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The extractor's maps.

        It pads only where it must, and a trace would keep the one way it took. Padding by a computed amount, which
        may be 0, holds for all sizes, and leaves nothing for the extractor to pad.
        """
        if self.unit > 1:
            down, right = ((self.unit - side % self.unit) % self.unit for side in images.shape[-2:])
            images = functional.pad(images, (0, right, 0, down))
        return dict(self.extractor(images))


class Normalised(nn.Module):
    """uint8 images → what ``part`` gives for them once they are normalised."""

    mean: Tensor
    scale: Tensor

    def __init__(self, part: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("mean", torch.tensor(mean).mul(255).view(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(std).mul(255).view(-1, 1, 1).reciprocal())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``images [B, C, H, W]`` uint8."""
        outputs: dict[str, Tensor] = self.part((images.float() - self.mean) * self.scale)
        return outputs


def _build_part(model: FineTuneModel, options: ExportOptions) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that is traced, in eval mode and without gradients, and the names of its outputs."""
    part = Classifier(model) if options.part == "classifier" else Extractor(model)
    module: nn.Module = part
    if options.with_normalisation:
        if model.preprocessing.files is not None:
            raise ConfigError(
                "--with_normalisation: takes uint8 images, and this model the values of GeoTIFFs "
                f"({model.preprocessing.files.dtype}); leave it out and normalise as the model card says"
            )
        module = Normalised(part, model.preprocessing.mean, model.preprocessing.std)
    return module.eval().requires_grad_(False), part.outputs


def trace(model: FineTuneModel, options: ExportOptions, format_name: str) -> tuple[ExportedProgram, Contract]:
    """Trace a part of the model.

    Args:
        model: on the CPU, in eval mode.
        options: which part, and whether for one size.
        format_name: of the contract.

    Raises:
        ConfigError: the model itself does not run at the size that is asked for, or takes no uint8 images.
        ExportFailedError: it cannot be traced so.
    """
    part, outputs = _build_part(model, options)
    size = options.fixed_size or model.preprocessing.image_size
    _require_runs(model, part, options, size)
    multiple = 1 if options.fixed_size else _multiple(model, options, part, size)
    # Batch and sides differ from each other, from 1 and from the trained size, so that none is taken for another.
    step = multiple if multiple > 1 else model.get_feature_extractor().size_divisibility + 5
    shape = (2, size, size) if options.fixed_size else (2, size + step, size + 2 * step)
    free = {} if options.fixed_size else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    dimensions = {0: Dim("batch", min=1), **free}
    with quiet(), torch.no_grad():
        try:
            images = _blank(model, options, *shape)
            program = torch.export.export(part, (images,), dynamic_shapes=(dimensions,), strict=False)
        except REFUSALS as error:
            raise ExportFailedError(f"torch.export: {first_line(error)}") from error
    _forget_origins(program)
    _allow_trained_grid(model, program)
    contract = Contract(
        format=format_name,
        part=options.part,
        dtype="uint8" if options.with_normalisation else "float32",
        fixed_size=options.fixed_size,
        smallest=size if options.fixed_size else _smallest(model, options, program, multiple, size),
        multiple=multiple,
        outputs=outputs,
    )
    return program, contract


def _blank(model: FineTuneModel, options: ExportOptions, batch: int, height: int, width: int) -> torch.Tensor:
    dtype = torch.uint8 if options.with_normalisation else torch.float32
    return torch.zeros(batch, model.in_channels, height, width, dtype=dtype)


@torch.no_grad()
def _require_runs(model: FineTuneModel, part: nn.Module, options: ExportOptions, size: int) -> None:
    try:
        part(_blank(model, options, 1, size, size))
    except UserError as error:
        raise ConfigError(f"--fixed_size {size}: {error}") from error
    except RuntimeError as error:
        raise ConfigError(
            f"--fixed_size {size}: {model.backbone} does not run at this size ({first_line(error)}); try "
            f"{model.preprocessing.image_size}, the size of its training"
        ) from error


@torch.no_grad()
def _multiple(model: FineTuneModel, options: ExportOptions, part: nn.Module, size: int) -> int:
    """What the sides must be multiples of, by trying one that is no such multiple."""
    try:
        part(_blank(model, options, 1, size + 1, size + 1))
    except (UserError, RuntimeError):
        return model.get_feature_extractor().size_divisibility
    return 1


@torch.no_grad()
def _smallest(
    model: FineTuneModel, options: ExportOptions, program: ExportedProgram, multiple: int, size: int
) -> int:
    """The fewest pixels a side at which the traced graph runs, of some that are likely.

    It may take no map of 1 × 1, which the tracer tells from larger ones.

    Raises:
        ExportFailedError: the size of the training is not among them.
    """
    lower = max(int(bounds.lower) for bounds in program.range_constraints.values())
    likely = {lower, model.row.family.smallest_image, 33, 64, 65, 96, 128, 2 * multiple, size}
    module = program.module()
    for side in sorted({-(-max(side, 2) // multiple) * multiple for side in likely if side <= size}):
        try:
            module(_blank(model, options, 1, side, side))
        except REFUSALS:
            continue
        return side
    raise ExportFailedError(f"a graph for all sizes does not run on {size} × {size} pixels, as in the training")


def _allow_trained_grid(model: FineTuneModel, program: ExportedProgram) -> None:
    """Let a ViT's graph for all sizes run at the size of its training too.

    It was traced at another one, where position embeddings are resampled, so the program refuses the
    trained grid, at which the model skips that. Resampling to the same grid changes nothing, as the comparison shows.
    """
    family = model.row.family
    if family.position_embedding is None or not getattr(program, "_guards_code", None):
        return
    positions = find_member(model.network, family.position_embedding)
    side = round((positions.shape[1] - family.num_prefix_tokens) ** 0.5)
    if side > 1:
        program._guards_code = [guard for guard in program._guards_code if not guard.endswith(f" != {side}")]


def _forget_origins(program: ExportedProgram) -> None:
    """Remove the paths of this machine that the trace notes."""
    modules = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    for module in modules:
        for node in module.graph.nodes:
            for note in _NOTES:
                node.meta.pop(note, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of torch's tracer, which no user can act on; failures are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
