"""What starting weights must be: numbers, in the shapes of the network, of all of it and of nothing deeper."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.utils.errors import WeightsError
from sat_vg.backbone_finetuning.utils.printable import list_some


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


def require_no_deeper(
    backbone: str, source: str, dropped: list[str], own: Mapping[str, Tensor], classifier: str
) -> None:
    """Refuse weights of a deeper network: more numbered layers where the network has numbered ones alone.

    What lies beside the ``classifier``, which names one of its tensors, differs for good reasons.
    """
    numbered: dict[str, set[str]] = defaultdict(set)
    for name in own:
        parts = name.split(".")
        for depth in range(1, len(parts) - 1):
            numbered[".".join(parts[:depth])].add(parts[depth])
    deeper = []
    for name in dropped:
        parts = name.split(".")
        for depth in range(1, len(parts) - 1):
            there = numbered.get(".".join(parts[:depth]), set())
            if parts[depth].isdigit() and there and parts[depth] not in there and all(map(str.isdigit, there)):
                deeper.append(".".join(parts[: depth + 1]))
                break
    head = classifier.partition(".")[0] + "."
    deeper = [name for name in dict.fromkeys(deeper) if not name.startswith(head)]
    if deeper:
        raise WeightsError(
            f"weights = {source!r}: the file has layers that {backbone} lacks: {list_some(deeper)}. They seem to be "
            "those of a deeper network: pass the backbone they were made with; or, where that is meant, "
            "--allow_missing true"
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
        detail = f"no name matches, under no prefix: it holds {held}; {backbone} needs {needed}"
    else:
        return
    raise WeightsError(f"weights = {source!r} do not fit {backbone}: {detail}. Pass the backbone they were made with")
