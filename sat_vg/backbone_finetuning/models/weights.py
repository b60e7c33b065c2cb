"""Starting weights: torchvision's by name, a file, or none; always saying what was loaded and what was not."""

import difflib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.backbones import BackboneRow, new_layers
from sat_vg.backbone_finetuning.models.families.family import PublishedWeights
from sat_vg.backbone_finetuning.models.input_bands import first_convolution, inflate_rgb, of_bands
from sat_vg.backbone_finetuning.models.position_embedding import resample_positions
from sat_vg.backbone_finetuning.utils.errors import WeightsError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.preprocessing import IMAGENET_MEAN, IMAGENET_STD, RGB, Preprocessing
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
        preprocessing: that of the source; for a plain file that of the backbone's best published weights.
    """

    source: str
    loaded: int
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    preprocessing: Preprocessing

    def __str__(self) -> str:
        if not self.loaded:
            return f"weights: {self.source}"
        parts = [f"weights: {self.source}: {self.loaded} tensors loaded"]
        if self.dropped:
            parts.append(f"dropped {_some(self.dropped)}")
        parts.append(f"missing {_some(self.missing)}" if self.missing else "none missing but the new head")
        return "; ".join(parts)


def load_initial_weights(
    network: nn.Module,
    row: BackboneRow,
    weights: str | None,
    pretrained: bool,
    image_size: int,
    bands: tuple[str, ...] = RGB,
) -> LoadedWeights:
    """Load starting weights into ``network``; the classifier always keeps its new, random start.

    Args:
        network: the freshly built network, changed in place.
        row: its row of the table.
        weights: a torchvision name such as ``IMAGENET1K_V2`` or ``DEFAULT``, ``none``, or the path of a state
            dict, plain or wrapped in ``state_dict`` or ``model``, with or without the prefixes ``module.``,
            ``_orig_mod.``, ``backbone.``, ``model.`` in any nesting. Unset: decided by ``pretrained``.
        pretrained: whether unset weights mean the best published ones or none.
        image_size: of the images to come; position embeddings are resampled for it.
        bands: of the images to come; the first convolution of RGB weights is inflated for them.

    Raises:
        WeightsError: there are no such weights, they cannot be fetched, or they do not fit.
    """
    published = row.family.weights(row.name)
    wanted = weights or ("DEFAULT" if pretrained else "none")
    if wanted.lower() == "none":
        return LoadedWeights("random start", 0, (), (), _for_bands(row, None, image_size, bands))
    if wanted in published:
        entry = published[wanted]
        source = f"{row.name} {entry.name}"
        preprocessing = _for_bands(row, entry, image_size, bands)
        return _apply(network, row, _download(entry, row.name), source, preprocessing)
    path = expand_home(wanted)
    if not path.is_file():
        raise WeightsError(_explain_unknown(wanted, row, published))
    content = load_tensors(path)
    preprocessing = _of_artifact(content, image_size, bands) or _for_bands(
        row, published.get("DEFAULT"), image_size, bands
    )
    return _apply(network, row, _state_dict(content, path), str(path), preprocessing)


def _explain_unknown(wanted: str, row: BackboneRow, published: Mapping[str, PublishedWeights]) -> str:
    if not published:
        return (
            f"weights = {wanted!r}: not a file, and nobody has published weights for {row.name}. Start from random "
            "ones: --pretrained false; or pass a file: --weights PATH"
        )
    near = difflib.get_close_matches(wanted.upper(), published, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"weights = {wanted!r}: neither a file nor published for {row.name} ({', '.join(published)}); {hint}Check "
        "the path, or use one of these names, or none"
    )


def _for_bands(
    row: BackboneRow, entry: PublishedWeights | None, image_size: int, bands: tuple[str, ...]
) -> Preprocessing:
    """The preprocessing of published weights, or the usual one, for the bands at hand."""
    interpolation = "bilinear" if entry is None else entry.interpolation
    mean, std = row.family.normalisation or (
        (IMAGENET_MEAN, IMAGENET_STD) if entry is None else (entry.mean, entry.std)
    )
    return Preprocessing.from_dict(
        {
            "image_size": image_size,
            "mean": of_bands(mean, bands),
            "std": of_bands(std, bands),
            "interpolation": interpolation,
            "bands": bands,
        }
    )


def _of_artifact(content: Any, image_size: int, bands: tuple[str, ...]) -> Preprocessing | None:
    """The preprocessing stored in a best_model.pt, if the file is one and its bands can be carried over."""
    if not isinstance(content, Mapping) or "preprocessing" not in content:
        return None
    stored = Preprocessing.from_dict({**content["preprocessing"], "image_size": image_size})
    if stored.bands == RGB and bands != RGB:
        return replace(stored, bands=bands, mean=of_bands(stored.mean, bands), std=of_bands(stored.std, bands))
    return stored


def _download(entry: PublishedWeights, backbone: str) -> dict[str, Tensor]:
    try:
        return entry.fetch()
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights {entry.name} of {backbone} cannot be downloaded ({error}). On a machine with access, "
            f"fetch {entry.url} and pass the file: --weights PATH. Or start from random weights: "
            "--pretrained false"
        ) from error


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
    preprocessing: Preprocessing,
) -> LoadedWeights:
    given = row.family.adapt_weights(network, given)
    own = network.state_dict()
    head = new_layers(network, row.family)
    given = {name: value for name, value in given.items() if _COUNTER not in name or name in own}
    usable = {name: value for name, value in given.items() if name in own and name not in head}
    positions = row.family.position_embedding
    if positions in usable and usable[positions].shape != own[positions].shape:
        grid_side = round((own[positions].shape[1] - row.family.num_prefix_tokens) ** 0.5)
        usable[positions] = resample_positions(
            usable[positions], (grid_side, grid_side), row.family.num_prefix_tokens
        )
    if preprocessing.bands != RGB:
        stem = first_convolution(network, row.family.stages(network))[0] + ".weight"
        if stem in usable and usable[stem].shape[1] == len(RGB):
            usable[stem] = inflate_rgb(usable[stem], preprocessing.bands)
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
