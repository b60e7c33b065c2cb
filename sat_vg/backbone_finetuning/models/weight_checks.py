"""What starting weights must be: numbers, in the shapes of the network, of all of it and of nothing deeper."""

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.models.networks.families.timm_cutting import TRUNK
from sat_vg.backbone_finetuning.utils.errors import WeightsError
from sat_vg.backbone_finetuning.utils.printable import list_some

# Tokens that take part in the attention of vision transformers; a mask token does not, once it is trained.
_FURTHER_TOKENS = re.compile(r"(reg|register|dist|cls|class|storage)_tokens?")
# Swin's tables, which are computed anew, and what counters of operations leave behind.
_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "total_ops", "total_params")


def require_numbers(usable: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Refuse integers where the network has fractions, NaN and infinity, and negative variances."""
    for name, value in usable.items():
        if not own[name].is_floating_point():
            continue
        if not value.is_floating_point():
            remedy = "quantised weights cannot be trained: pass those from before the quantisation"
            if value.is_complex():
                remedy = "networks here have no complex weights: check that the file is the right one"
            elif value.dtype == torch.bool:
                remedy = "true and false, as in a mask, are no weights: check that the file is the right one"
            raise WeightsError(
                f"weights = {source!r}: {name} holds {str(value.dtype).removeprefix('torch.')} and not "
                f"floating-point numbers; {remedy}"
            )
        if not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            numbers, verb = ("number", "is") if count == 1 else ("numbers", "are")
            raise WeightsError(
                f"weights = {source!r}: {name} has {count} {numbers} of {value.numel()} that {verb} NaN, infinite or "
                "too large for float32. The training that made them went wrong, or the file is altered: use an "
                "earlier one"
            )
        if name.endswith("running_var") and bool((value < 0).any()):
            raise WeightsError(
                f"weights = {source!r}: {name} is a variance and has numbers below 0, which make NaN of every image. "
                "The file is altered, or what made it went wrong: use an earlier one"
            )


def require_all(backbone: str, source: str, missing: list[str], dropped: list[str], num_needed: int) -> None:
    """Refuse weights that leave a part of the backbone random."""
    if not missing:
        return
    unused = f"; the file has, unused, {list_some(dropped)}" if dropped else ""
    raise WeightsError(
        f"weights = {source!r}: {len(missing)} of the {num_needed} tensors of {backbone} are missing and would start "
        f"at random: {list_some(missing)}{unused}. Pass the backbone they were made with; or, where that is meant, "
        "--allow_missing true"
    )


def require_no_more(
    backbone: str, source: str, dropped: Mapping[str, Tensor], own: Collection[str], classifiers: Sequence[str]
) -> None:
    """Refuse weights of a network that has further layers or factors within this one's: they shaped all others.

    Such are a deeper network's blocks, the squeezes of an SE-ResNet, and the layer scales and tokens of some vision
    transformers. What lies beside the ``classifiers``, tensors by their names, differs for good reasons.
    """
    parents = {name[: dot.start()] for name in own for dot in re.finditer(r"\.", name)}
    # timm has a norm in "head", which is no part of the new classifier
    heads = {"head", *(name.partition(".")[0] for name in classifiers)}
    more = []
    for name, value in dropped.items():
        path = name.removeprefix(TRUNK)
        parts = [name[: dot.start()] for dot in re.finditer(r"\.|$", name)]  # a, a.b and a.b.c of a.b.c
        unknown = next(part for part in parts if part not in parents)
        is_within = "." in unknown.removeprefix(TRUNK) and path.partition(".")[0] not in heads
        is_computed = name.endswith(_COMPUTED) or not value.is_floating_point()
        is_nothing = name.endswith("bias") and not bool(value.any())
        if _FURTHER_TOKENS.fullmatch(path) or (is_within and not is_computed and not is_nothing):
            more.append(unknown.removeprefix(TRUNK))
    if more:
        raise WeightsError(
            f"weights = {source!r}: the file has layers that {backbone} lacks: "
            f"{list_some(list(dict.fromkeys(more)))}. They seem to be those of another network, deeper or with more "
            "in each layer: pass the backbone they were made with; or, where that is meant, --allow_missing true"
        )


def require_shapes(
    backbone: str, source: str, given: Mapping[str, Tensor], usable: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """Refuse weights of which a tensor has another shape, or no name is known."""
    misfits = [name for name, value in usable.items() if value.shape != own[name].shape]
    if misfits:
        name = misfits[0]
        count = "1 tensor has" if len(misfits) == 1 else f"{len(misfits)} tensors have"
        detail = (
            f"{count} another shape: {name} is {tuple(given[name].shape)}, {backbone} needs {tuple(own[name].shape)}"
        )
    elif not usable:
        held, needed = list_some(list(given)), list_some(list(own))
        detail = (
            f"no name matches, under no prefix: it holds {held}; {backbone} needs {needed}. The same network has "
            "other names in other libraries: those of timm are for --backbone timm:NAME, all others must be renamed "
            f"to those of {backbone}"
        )
    else:
        return
    raise WeightsError(f"weights = {source!r} do not fit {backbone}: {detail}. Pass the backbone they were made with")
