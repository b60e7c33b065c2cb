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

from sat_vg.backbone_finetuning.models.exports.contract import (
    REFUSALS,
    Contract,
    ExportFailedError,
    ExportOptions,
    first_line,
)
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError, UserError

# What the tracer notes of where each line of the graph comes from: paths of this machine, and nothing that computes.
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


class _Classifier(nn.Module):
    """``images [B, C, H, W]``, normalised → ``{"logits": [B, num_classes]}``."""

    def __init__(self, model: FineTuneModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.outputs: tuple[str, ...] = ("logits",)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(images)}


class _Extractor(nn.Module):
    """``images [B, C, H, W]``, normalised → feature maps by stage name.

    The extractor pads only where it must, and a trace would keep the one way it took. Padding by a computed amount,
    which may be 0, holds for all sizes, and leaves nothing for the extractor to pad.
    """

    def __init__(self, model: FineTuneModel) -> None:
        super().__init__()
        self.extractor = model.get_feature_extractor()
        self.outputs = self.extractor.out_names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        unit = self.extractor.size_divisibility
        if unit > 1:
            down, right = ((unit - side % unit) % unit for side in images.shape[-2:])
            images = functional.pad(images, (0, right, 0, down))
        return dict(self.extractor(images))


class _Normalised(nn.Module):
    """uint8 images → what ``part`` gives for them once they are normalised."""

    mean: Tensor
    scale: Tensor

    def __init__(self, part: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("mean", torch.tensor(mean).mul(255).view(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(std).mul(255).view(-1, 1, 1).reciprocal())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.part((images.float() - self.mean) * self.scale)
        return outputs


def trace(model: FineTuneModel, options: ExportOptions, format_name: str) -> tuple[ExportedProgram, Contract]:
    """Trace a part of the model, which is on the CPU and in eval mode.

    Raises:
        ConfigError: the model itself does not run at the size that is asked for, or takes no uint8 images.
        ExportFailedError: it cannot be traced so.
    """
    part = _Classifier(model) if options.part == "classifier" else _Extractor(model)
    module: nn.Module = part
    if options.with_normalisation:
        if model.preprocessing.files is not None:
            raise ConfigError(
                "--with_normalisation: takes uint8 images, and this model the values of GeoTIFFs "
                f"({model.preprocessing.files.dtype}); leave it out and normalise as the model card says"
            )
        module = _Normalised(part, model.preprocessing.mean, model.preprocessing.std)
    module.eval().requires_grad_(False)
    dtype = torch.uint8 if options.with_normalisation else torch.float32
    size, channels = options.fixed_size or model.preprocessing.image_size, model.in_channels

    def blank(height: int, width: int, batch: int = 1) -> Tensor:
        return torch.zeros(batch, channels, height, width, dtype=dtype)

    _require_runs(model, module, blank(size, size))
    unit = model.get_feature_extractor().size_divisibility
    multiple = unit if not options.fixed_size and not _runs(module, blank(size + 1, size + 1)) else 1
    # Batch and sides differ from each other, from 1 and from the trained size, so that none is taken for another.
    step = multiple if multiple > 1 else unit + 5
    images = blank(size, size, 2) if options.fixed_size else blank(size + step, size + 2 * step, 2)
    free = {} if options.fixed_size else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    dimensions = {0: Dim("batch", min=1), **free}
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(module, (images,), dynamic_shapes=(dimensions,), strict=False)
        except REFUSALS as error:
            raise ExportFailedError(f"torch.export: {first_line(error)}") from error
    _forget_origins(program)
    _allow_trained_grid(model, program)
    smallest = size
    if not options.fixed_size:
        # A graph may take no map of 1 × 1, which the tracer tells from larger ones.
        lower = max(int(bounds.lower) for bounds in program.range_constraints.values())
        likely = {lower, model.row.family.smallest_image, 33, 64, 65, 96, 128, 2 * multiple, size}
        sides = sorted({-(-max(side, 2) // multiple) * multiple for side in likely if side <= size})
        graph = program.module()
        smallest = next((side for side in sides if _runs(graph, blank(side, side))), 0)
        if not smallest:
            raise ExportFailedError(
                f"a graph for all sizes does not run on {size} × {size} pixels, as in the training"
            )
    return program, Contract(
        format=format_name,
        part=options.part,
        dtype="uint8" if options.with_normalisation else "float32",
        fixed_size=options.fixed_size,
        smallest=smallest,
        multiple=multiple,
        outputs=part.outputs,
    )


@torch.no_grad()
def _require_runs(model: FineTuneModel, part: nn.Module, images: Tensor) -> None:
    size = images.shape[-1]
    try:
        part(images)
    except UserError as error:
        raise ConfigError(f"--fixed_size {size}: {error}") from error
    except RuntimeError as error:
        raise ConfigError(
            f"--fixed_size {size}: {model.backbone} does not run at this size ({first_line(error)}); try "
            f"{model.preprocessing.image_size}, the size of its training"
        ) from error


@torch.no_grad()
def _runs(part: nn.Module, images: Tensor) -> bool:
    try:
        part(images)
    except (UserError, *REFUSALS):
        return False
    return True


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
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
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
