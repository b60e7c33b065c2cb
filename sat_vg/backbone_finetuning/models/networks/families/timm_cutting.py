"""Cut a network of timm into stages, by running it once with its layers watched."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.stages import Stage
from sat_vg.backbone_finetuning.utils.errors import UserError

TRUNK = "trunk."
SMALLEST = 32
_CONTAINERS = ("stages", "blocks", "layers", "levels", "features")
# How timm's networks refuse an image: assertions in patch embeddings, and shapes that do not fit.
REFUSALS = (AssertionError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Layout:
    """Way to read a stage's output as a map."""

    kind: str  # NCHW, NHWC or tokens
    channels: int
    stride: int  # input pixels per map pixel
    num_prefix_tokens: int = 0  # leading tokens without a place in the image

    def read(self, output: Tensor, image_hw: tuple[int, int]) -> Tensor | None:
        """The output as ``[B, C, h, w]``, or None where it does not have this layout."""
        if self.kind == "tokens" and output.dim() == 3:
            patches = output[:, self.num_prefix_tokens :].transpose(1, 2)
            grid = (image_hw[0] // self.stride, image_hw[1] // self.stride)
            fits = patches.shape[1:] == (self.channels, grid[0] * grid[1])
            return torch.unflatten(patches, 2, grid).contiguous() if fits else None
        if self.kind == "tokens" or output.dim() != 4:
            return None
        found = output if self.kind == "NCHW" else output.permute(0, 3, 1, 2).contiguous()
        return found if found.shape[1] == self.channels else None


@dataclass(frozen=True)
class Cut:
    """Measured cut of a network into stages."""

    kind: str  # staged, vit or trunk
    stages: tuple[Stage, ...]
    layouts: tuple[Layout, ...] = ()  # of the stages' outputs
    size_divisibility: int = 1
    smallest_image: int = SMALLEST  # pixels a side that images are padded to at least
    fixed_image_size: int | None = None  # the only size that the network takes, if it takes but one
    has_neck: bool = False  # the last stage pools, since there are parameters in the pooling


def patch_size(trunk: nn.Module) -> int:
    """Side of the patches that the image is cut into, or 1; what does not fill a patch would be cut off."""
    embedding = importlib.import_module("timm.layers").PatchEmbed
    sides = [max(child.patch_size) for child in trunk.children() if isinstance(child, embedding)]
    return int(sides[0]) if sides else 1


def measure_cut(holder: Any, images: Tensor) -> Cut:
    """How the network in ``holder.trunk`` is cut, by running it in eval mode on ``images [1, 3, H, W]``, square."""
    trunk = holder.trunk
    features = trunk.forward_features(images)
    cut = Cut("trunk", (Stage("trunk", ("trunk",), _run_trunk),))
    for propose in (_vit_cut, _staged_cut):
        proposed = propose(trunk, images)
        if proposed is not None and torch.equal(_run_all(holder, proposed.stages, images)[-1], features):
            cut = _with_neck(trunk, proposed)
            break
    return _with_sizes(holder, _with_layouts(holder, cut, images), images.shape[-1])


def _run_all(holder: Any, stages: Sequence[Stage], value: Tensor) -> list[Tensor]:
    outputs = []
    for stage in stages:
        value = stage.run(holder, value)
        outputs.append(value)
    return outputs


def _run_trunk(network: Any, images: Tensor) -> Tensor:
    features: Tensor = network.trunk.forward_features(images)
    return features


def _run_vit_patch_embed(network: Any, images: Tensor) -> Tensor:
    trunk = network.trunk
    tokens: Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))
    return tokens


def run_neck(network: Any, features: Tensor) -> Tensor:
    """What timm does between the features and its classifier: ``→ [B, D]``."""
    pooled: Tensor = network.trunk.forward_head(features, pre_logits=True)
    return pooled


def _run_on_copy(stage: Stage, network: nn.Module, value: Tensor) -> Tensor:
    """For stages that write into their input, which is the map of the stage before them."""
    return stage.run(network, value.clone())


def _run_at_size(stage: Stage, size: int, network: nn.Module, images: Tensor) -> Tensor:
    """For the first stage of networks that take images of one size."""
    height, width = images.shape[-2:]
    if (height, width) != (size, size):
        raise UserError(
            f"images of {height} × {width} pixels: this network was built for {size} × {size} and takes no others; "
            f"resize them to {size} × {size} (the extractor's transforms() do so), or train with another image_size "
            "or a backbone that takes any size, such as timm:pvt_v2_b0"
        )
    return stage.run(network, images)


def _vit_cut(trunk: Any, images: Tensor) -> Cut | None:
    """Patch embedding, blocks, norm, as timm's ``VisionTransformer`` runs them."""
    vision_transformer = importlib.import_module("timm.models.vision_transformer").VisionTransformer
    if not isinstance(trunk, vision_transformer):
        return None
    own = [name for name, _ in trunk.named_parameters(recurse=False)]
    start = ("patch_embed", *own, "pos_drop", "patch_drop", "norm_pre")
    blocks = [Stage(f"block{name}", (f"trunk.blocks.{name}",)) for name, _ in trunk.blocks.named_children()]
    first = Stage("patch_embed", tuple(TRUNK + name for name in start), _run_vit_patch_embed)
    return Cut("vit", (first, *blocks, Stage("norm", ("trunk.norm",))))


def _staged_cut(trunk: nn.Module, images: Tensor) -> Cut | None:
    """The layers in the order in which they were run, if they were run one after another and nothing else was."""
    opened: list[str] = []  # the top-level layers; of containers, their contents
    for name, child in trunk.named_children():
        is_container = name in _CONTAINERS and isinstance(child, (nn.Sequential, nn.ModuleList))
        opened += [f"{name}.{inner}" for inner, _ in child.named_children()] if is_container else [name]
    for names in (opened, [name for name, _ in trunk.named_children()]):
        layers = _watch(trunk, names, images)
        stages = _group(trunk, layers) if layers else ()
        if len(stages) > 1:
            return Cut("staged", stages)
    return None


def _watch(trunk: Any, names: Sequence[str], images: Tensor) -> list[str] | None:
    """Run the network and note which layers ran, in order; None if they are not all there is to it."""
    calls: list[tuple[str, tuple[Any, ...], Any]] = []

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        calls.append((name, (*inputs, *options.values()), output))

    hooks = [trunk.get_submodule(name).register_forward_hook(partial(note, name), with_kwargs=True) for name in names]
    features = trunk.forward_features(images)
    for hook in hooks:
        hook.remove()
    value: Any = images
    for _, inputs, output in calls:
        if len(inputs) != 1 or inputs[0] is not value or not isinstance(output, Tensor):
            return None
        value = output
    called = [name for name, _, _ in calls]
    return called if value is features and len(set(called)) == len(called) else None


def _group(trunk: nn.Module, layers: Sequence[str]) -> tuple[Stage, ...]:
    """One stage for every block; single layers in a row, such as convolution and norm, are one together."""
    groups: list[list[str]] = []
    joins_layers = True
    for name in layers:
        layer = trunk.get_submodule(name)
        has_parameters = next(layer.parameters(), None) is not None
        is_single = all(next(child.parameters(), None) is None for child in layer.children())
        if groups and (not has_parameters or (is_single and joins_layers)):
            groups[-1].append(name)
        else:
            joins_layers = is_single or not groups  # the first layers are the stem, whatever they consist of
            groups.append([name])
    names = [_stage_name(group[0]) for group in groups]
    if len(groups[0]) > 1:
        names[0] = "stem"
    if len(set(names)) < len(names):
        names = [group[0].replace(".", "_") for group in groups]
    return tuple(
        Stage(name, tuple(TRUNK + layer for layer in group)) for name, group in zip(names, groups, strict=True)
    )


def _stage_name(layer: str) -> str:
    """``stages.0`` → ``stage0``, ``features.denseblock1`` → ``denseblock1``, ``layer1`` → ``layer1``."""
    container, _, inner = layer.rpartition(".")
    return f"{container.removesuffix('s')}{inner}" if inner.isdigit() else inner


def _with_neck(trunk: nn.Module, cut: Cut) -> Cut:
    """The cut with what it leaves out as its last stage, if there are parameters or statistics in it."""
    owned = {member.removeprefix(TRUNK) for stage in cut.stages for member in stage.members}
    left = [name for name, _ in trunk.named_parameters(recurse=False) if name not in owned]
    for name, child in trunk.named_children():
        parts = {name, *(f"{name}.{inner}" for inner, _ in child.named_children())}
        if not parts & owned and child.state_dict():
            left.append(name)
    if not left:
        return cut
    neck = Stage("neck", tuple(TRUNK + name for name in left), run_neck, gives_map=False)
    return replace(cut, stages=(*cut.stages, neck), has_neck=True)


def _with_layouts(holder: Any, cut: Cut, images: Tensor) -> Cut:
    stages: list[Stage] = []
    layouts: list[Layout] = []
    value = images
    for stage in cut.stages:
        version = value._version
        output = stage.run(holder, value)
        if value._version != version:
            stage = replace(stage, forward=partial(_run_on_copy, stage))
        layout = _find_layout(holder.trunk, output, images.shape[-1]) if stage.gives_map else None
        stages.append(replace(stage, gives_map=layout is not None))
        if layout is not None and layout not in layouts:
            layouts.append(layout)
        value = output
    return replace(cut, stages=tuple(stages), layouts=tuple(layouts))


def _find_layout(trunk: Any, output: Any, image_size: int) -> Layout | None:
    """The layout of a stage's output for a square image."""
    if not isinstance(output, Tensor) or output.dim() not in (3, 4):
        return None
    if output.dim() == 3:
        # A network may join its class token late, and not all of them say how many there are.
        for prefix in dict.fromkeys((getattr(trunk, "num_prefix_tokens", 0), 0, int(hasattr(trunk, "cls_token")))):
            side = math.isqrt(max(0, output.shape[1] - prefix))
            if side > 1 and side * side == output.shape[1] - prefix:
                return Layout("tokens", output.shape[2], round(image_size / side), prefix)
        return None
    _, first, second, third = output.shape
    if first != second and second != third:
        return None  # neither is square
    is_ambiguous = first == second == third
    is_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC" if is_ambiguous else first == second
    return (
        Layout("NHWC", third, round(image_size / first))
        if is_last
        else Layout("NCHW", first, round(image_size / third))
    )


def _with_sizes(holder: Any, cut: Cut, image_size: int) -> Cut:
    """The cut with what sizes the network takes, found out by trying."""
    patch = patch_size(holder.trunk)
    multiples = {math.lcm(patch, 2**power) for power in range(8)} | {image_size}
    for multiple in sorted(multiple for multiple in multiples if image_size % multiple == 0):
        for smallest in (least for least in (SMALLEST, 64, 128) if least <= max(image_size, SMALLEST)):
            growing = _growing_maps(holder, cut, multiple, smallest)
            if growing is not None:
                stages = tuple(replace(stage, gives_map=stage.name in growing) for stage in cut.stages)
                return replace(cut, stages=stages, size_divisibility=multiple, smallest_image=smallest)
    first = cut.stages[0]
    stages = (replace(first, forward=partial(_run_at_size, first, image_size)), *cut.stages[1:])
    return replace(cut, stages=stages, size_divisibility=image_size, fixed_image_size=image_size)


def _growing_maps(holder: Any, cut: Cut, multiple: int, smallest: int) -> set[str] | None:
    """The stages whose maps grow with the image; None if the network refuses an image it would be padded to."""
    least, side = (math.ceil(pixels / multiple) * multiple for pixels in (smallest, max(64, smallest)))
    try:
        _map_heights(holder, cut, (least, least + multiple))
        small, large = (_map_heights(holder, cut, (size, size)) for size in (side, 2 * side))
    except REFUSALS:  # the question was whether it refuses
        return None
    return {name for name, height in small.items() if large[name] > height}


def _map_heights(holder: Any, cut: Cut, image_hw: tuple[int, int]) -> dict[str, int]:
    outputs = _run_all(holder, cut.stages, torch.zeros(1, 3, *image_hw))
    pooled = outputs[-1] if cut.has_neck else run_neck(holder, outputs[-1])
    assert pooled.dim() == 2
    return {
        stage.name: read_map(cut, output, image_hw).shape[2]
        for stage, output in zip(cut.stages, outputs, strict=True)
        if stage.gives_map
    }


def read_map(cut: Cut, output: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """The output as ``[B, C, h, w]``, by the layout that comes nearest to the expected height.

    Raises:
        ValueError: it has none of the measured layouts.
    """
    read = [(layout.read(output, image_hw), image_hw[0] / layout.stride) for layout in cut.layouts]
    found = [(value, height) for value, height in read if value is not None]
    if not found:
        raise ValueError(f"an output of shape {tuple(output.shape)} for images of {image_hw} has no layout of a map")
    return min(found, key=lambda one: abs(one[0].shape[2] - one[1]))[0]
