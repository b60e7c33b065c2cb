"""Starting weights: torchvision's by name, a file, or none; always saying what was loaded and what was not."""

import difflib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn
from torchvision import models

from sat_vg.backbone_finetuning.models.backbones import BackboneRow, classifier_names
from sat_vg.backbone_finetuning.models.position_embedding import resample_positions
from sat_vg.backbone_finetuning.utils.errors import WeightsError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors

_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "weights")
# num_batches_tracked counts steps and shapes no output; old files lack it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadedWeights:
    """What came of loading starting weights.

    Attributes:
        source: where they came from, in words.
        loaded: number of tensors taken over.
        dropped: names in the source that were not used (the old classifier, parts the network lacks).
        missing: names in the network that the source lacks; they keep their random start.
        preprocessing: that of the source; for a plain file that of torchvision's best weights for the backbone.
    """

    source: str
    loaded: int
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    preprocessing: Preprocessing | None

    def __str__(self) -> str:
        if not self.loaded:
            return f"weights: {self.source}"
        parts = [f"weights: {self.source}: {self.loaded} tensors loaded"]
        if self.dropped:
            parts.append(f"dropped {_some(self.dropped)}")
        parts.append(f"missing {_some(self.missing)}" if self.missing else "none missing but the new head")
        return "; ".join(parts)


def load_initial_weights(
    network: nn.Module, row: BackboneRow, weights: str | None, pretrained: bool, image_size: int
) -> LoadedWeights:
    """Load starting weights into ``network``; the classifier always keeps its new, random start.

    Args:
        network: the freshly built network, changed in place.
        row: its row of the table.
        weights: a torchvision name such as ``IMAGENET1K_V2`` or ``DEFAULT``, ``none``, or the path of a state
            dict, plain or wrapped in ``state_dict`` or ``model``, with or without the prefixes ``module.``,
            ``_orig_mod.``, ``backbone.``, ``model.`` in any nesting. Unset: decided by ``pretrained``.
        pretrained: whether unset weights mean torchvision's best ones or none.
        image_size: of the images to come; position embeddings are resampled for it.

    Raises:
        WeightsError: there are no such weights, they cannot be fetched, or they do not fit.
    """
    wanted = weights or ("DEFAULT" if pretrained else "none")
    if wanted.lower() == "none":
        return LoadedWeights("random start", 0, (), (), None)
    names = models.get_model_weights(row.name).__members__
    if wanted in names:
        entry = names[wanted]
        source = f"torchvision {row.name} {entry.name}"
        return _apply(network, row, _download(entry, row.name), source, _of_torchvision(entry, image_size))
    path = Path(wanted).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(wanted.upper(), names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise WeightsError(
            f"weights = {wanted!r}: neither a file nor one of torchvision's for {row.name} "
            f"({', '.join(names)}); {hint}Check the path, or use one of these names, or none"
        )
    content = load_tensors(path)
    preprocessing = _of_artifact(content, image_size) or _of_torchvision(names["DEFAULT"], image_size)
    return _apply(network, row, _state_dict(content, path), str(path), preprocessing)


def _of_torchvision(entry: Any, image_size: int) -> Preprocessing:
    preset = entry.transforms()
    return Preprocessing(
        image_size=image_size,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _of_artifact(content: Any, image_size: int) -> Preprocessing | None:
    if not isinstance(content, Mapping) or "preprocessing" not in content:
        return None
    return Preprocessing.from_dict({**content["preprocessing"], "image_size": image_size})


def _download(entry: Any, backbone: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = entry.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights {entry.name} of {backbone} cannot be downloaded ({error}). On a machine with access, "
            f"fetch {entry.url} and pass the file: --weights PATH. Or start from random weights: "
            "--pretrained false"
        ) from error
    return state


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in a file's content, without wrappers and prefixes."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {strip_prefixes(str(k)): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(
            f"weights = {str(path)!r}: the file holds no state dict; expected names with tensors, plain or under "
            f"one of {', '.join(_WRAPPERS)}"
        )
    return tensors


def strip_prefixes(name: str) -> str:
    """``module._orig_mod.backbone.conv1.weight`` → ``conv1.weight``, in whatever order they are nested."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _apply(
    network: nn.Module,
    row: BackboneRow,
    given: dict[str, Tensor],
    source: str,
    preprocessing: Preprocessing | None,
) -> LoadedWeights:
    own = network.state_dict()
    head = classifier_names(network, row.family)
    given = {name: value for name, value in given.items() if _COUNTER not in name or name in own}
    usable = {name: value for name, value in given.items() if name in own and name not in head}
    positions = row.family.position_embedding
    if positions in usable and usable[positions].shape != own[positions].shape:
        grid_side = round((own[positions].shape[1] - row.family.num_prefix_tokens) ** 0.5)
        usable[positions] = resample_positions(
            usable[positions], (grid_side, grid_side), row.family.num_prefix_tokens
        )
    misfits = [name for name, value in usable.items() if value.shape != own[name].shape]
    if misfits or not usable:
        raise WeightsError(_explain_misfit(row.name, source, given, own, misfits))
    # With the layers' version numbers, which a plain dictionary of tensors lacks.
    versioned = OrderedDict(usable)
    versioned._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(versioned, strict=False)
    missing = [name for name in own if name not in usable and name not in head and _COUNTER not in name]
    dropped = [name for name in given if name not in usable]
    return LoadedWeights(source, len(usable), tuple(dropped), tuple(missing), preprocessing)


def _explain_misfit(
    backbone: str, source: str, given: dict[str, Tensor], own: dict[str, Tensor], misfits: list[str]
) -> str:
    if misfits:
        name = misfits[0]
        detail = (
            f"{len(misfits)} tensors have another shape: {name} is {tuple(given[name].shape)}, "
            f"{backbone} needs {tuple(own[name].shape)}"
        )
    else:
        detail = f"no name matches: it holds {_some(tuple(given))}; {backbone} needs {_some(tuple(own))}"
    return f"weights = {source!r} do not fit {backbone}: {detail}. Pass the backbone they were made with"


def _some(names: tuple[str, ...], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
