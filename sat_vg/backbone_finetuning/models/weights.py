"""Starting weights: torchvision's by name, a file, or none; the report says what was loaded and what was not."""

import difflib
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.error import URLError

from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.input_bands import first_convolution, inflate_rgb, of_bands
from sat_vg.backbone_finetuning.models.networks.families.family import PublishedWeights
from sat_vg.backbone_finetuning.models.networks.families.timm_networks import PREFIX as TIMM_PREFIX
from sat_vg.backbone_finetuning.models.networks.table import BackboneRow, new_layers, present_auxiliary_heads
from sat_vg.backbone_finetuning.models.position_embedding import resample_positions
from sat_vg.backbone_finetuning.models.probabilities import TaskName
from sat_vg.backbone_finetuning.models.weight_checks import (
    require_all,
    require_no_more,
    require_numbers,
    require_shapes,
)
from sat_vg.backbone_finetuning.models.weight_files import ChosenTensors, WeightsFile, choose_tensors, read_weights
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, WeightsError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.preprocessing import IMAGENET_MEAN, IMAGENET_STD, RGB, Preprocessing
from sat_vg.backbone_finetuning.utils.printable import counted, list_some

# num_batches_tracked counts steps and shapes no output; old files lack it.
_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class StartRequest:
    """Weights that a network is to start from, and the images and classes to come."""

    weights: str | None
    """Name such as ``IMAGENET1K_V2`` or ``DEFAULT``, ``none``, or path of a file with the network's tensors under
    their names: plain or nested in dictionaries, under any common prefix. Unset: decided by ``pretrained``."""
    pretrained: bool
    image_size: int
    """Position embeddings are resampled for it."""
    bands: tuple[str, ...] = RGB
    """The first convolution of RGB weights is inflated for them."""
    class_names: tuple[str, ...] | None = None
    """The classifier of a file with the same classes is kept. Unset: none is."""
    task: TaskName = "single_label"
    allow_missing: bool = False
    """A file may lack a part of the network, which then keeps its random start."""


class LoadedWeights(NamedTuple):
    """What was loaded and what was not, in a line, and the preprocessing that goes with it."""

    report: str
    preprocessing: Preprocessing
    needs_head: bool = False  # weights were loaded for the backbone, and the classifier starts at random
    trained_with: Mapping[str, Any] | None = None  # configuration of the training that a best_model.pt comes from


class _Candidate(NamedTuple):
    """Weights that are to be loaded."""

    source: str  # origin, in words
    chosen: ChosenTensors
    preprocessing: Preprocessing  # for the images to come
    head: tuple[str, ...] = ()  # names of the classifier's tensors, where these are taken over
    is_of_bands: bool = False  # whether the first convolution is for the bands of the images already


def load_initial_weights(network: nn.Module, row: BackboneRow, request: StartRequest) -> LoadedWeights:
    """Load starting weights into ``network``; the classifier keeps its random start, unless a file has its classes.

    Raises:
        WeightsError: there are no such weights, they cannot be fetched, do not fit, or are no numbers.
        CheckpointError: a file cannot be read.
    """
    published = row.family.weights(row.name)
    wanted = request.weights or ("DEFAULT" if request.pretrained else "none")
    if wanted.lower() == "none":
        return LoadedWeights("weights: random start", _for_bands(row, None, request))
    if wanted in published:
        entry = published[wanted]
        chosen = ChosenTensors(_download(entry, row.name))
        given = _Candidate(f"{row.name} {entry.name}", chosen, _for_bands(row, entry, request))
        return _apply(network, row, given, request.allow_missing)
    path = expand_home(wanted)
    if not path.is_file():
        raise WeightsError(_explain_unknown(wanted, row, published))
    file = read_weights(path)
    _require_backbone(file, row.name)
    chosen = choose_tensors(file, network, _decisive(network, row))
    chosen, head = _with_head(file, chosen, network, row, request)
    stored = _of_artifact(file, request)
    preprocessing = stored or _for_bands(row, published.get("DEFAULT"), request)
    is_of_bands = stored is not None and tuple(file.facts["preprocessing"].get("bands", RGB)) == request.bands
    given = _Candidate(str(path), chosen, preprocessing, head, is_of_bands)
    loaded = _apply(network, row, given, request.allow_missing)
    trained_with = file.facts.get("config")
    return loaded._replace(trained_with=trained_with) if isinstance(trained_with, Mapping) else loaded


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


def _for_bands(row: BackboneRow, entry: PublishedWeights | None, request: StartRequest) -> Preprocessing:
    """The preprocessing of published weights, or the usual one, for the bands at hand."""
    usual = (IMAGENET_MEAN, IMAGENET_STD) if entry is None else (entry.mean, entry.std)
    mean, std = row.family.normalisation or usual
    return Preprocessing.from_dict(
        {
            "image_size": request.image_size,
            "mean": of_bands(mean, request.bands),
            "std": of_bands(std, request.bands),
            "interpolation": "bilinear" if entry is None else entry.interpolation,
            "bands": request.bands,
        }
    )


def _of_artifact(file: WeightsFile, request: StartRequest) -> Preprocessing | None:
    """The preprocessing stored in a file of this package, if it is one.

    Raises:
        CheckpointError: it is no preprocessing.
        WeightsError: it is for other bands, and these are not red, green and blue, which can be carried over.
    """
    if "preprocessing" not in file.facts:
        return None
    given = file.facts["preprocessing"]
    if not isinstance(given, Mapping) or not {"mean", "std"} <= given.keys():
        raise CheckpointError(f"{str(file.path)!r} has no sound preprocessing: it is altered; use another file")
    stored = Preprocessing.from_dict({**given, "image_size": request.image_size})
    bands = request.bands
    if stored.bands == bands:
        return stored
    if stored.bands == RGB:
        return replace(stored, bands=bands, mean=of_bands(stored.mean, bands), std=of_bands(stored.std, bands))
    places = stored.bands if stored.files is None else stored.files.bands
    flag = ",".join(f"{name}={place}" for name, place in zip(stored.bands, places, strict=True))
    raise WeightsError(
        f"bands are {'unset' if bands == RGB else ', '.join(bands)}, and the starting weights {str(file.path)!r} "
        f"were trained on the bands {', '.join(stored.bands)}. Name the same, in this order (there they were --bands "
        f"{flag}), or start from other weights"
    )


def _download(entry: PublishedWeights, backbone: str) -> dict[str, Tensor]:
    try:
        return entry.fetch()
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights {entry.name} of {backbone} cannot be downloaded ({error}). On a machine with access, "
            f"fetch {entry.url} and pass the file: --weights PATH. Or start from random weights: "
            "--pretrained false"
        ) from error


def _require_backbone(file: WeightsFile, backbone: str) -> None:
    """Refuse a file that says itself that it is another backbone's; timm's tags name weights of one network."""

    def architecture(name: str) -> str:
        return name.partition(".")[0] if name.startswith(TIMM_PREFIX) else name

    other = file.facts.get("backbone")
    if isinstance(other, str) and architecture(other) != architecture(backbone):
        raise WeightsError(
            f"weights = {str(file.path)!r}: the file holds a {other}, and backbone = {backbone!r}. Train that one: "
            f"--backbone {other}; or start from other weights"
        )


def _decisive(network: nn.Module, row: BackboneRow) -> frozenset[str]:
    """Names of the tensors without which a backbone is not the one that was trained.

    These are its parameters and the statistics of its norms. Classifiers, auxiliary ones too, are not, and neither
    are buffers that are computed, such as Swin's table of relative positions.
    """
    heads = (row.family.classifier, *(head.module for head in present_auxiliary_heads(network, row.family)))
    names = [name for name, _ in network.named_parameters()]
    names += [name for name, _ in network.named_buffers() if name.rpartition(".")[2] in _STATISTICS]
    return frozenset(name for name in names if not name.startswith(tuple(f"{head}." for head in heads)))


def _with_head(
    file: WeightsFile, chosen: ChosenTensors, network: nn.Module, row: BackboneRow, request: StartRequest
) -> tuple[ChosenTensors, tuple[str, ...]]:
    """The tensors with the classifier's rows in the order of the classes to come, and which of them are its."""
    names = file.facts.get("class_names")
    if request.class_names is None or not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        return chosen, ()
    theirs, ours = ([unicodedata.normalize("NFC", one) for one in given] for given in (names, request.class_names))
    head, own = new_layers(network, row.family), network.state_dict()
    task, pool = file.facts.get("task", "single_label"), file.facts.get("pool", "default")
    if task != request.task:
        note = f"the head is new: that of the file is for {task}, and the images are {request.task}"
    elif pool != row.pool:
        note = f"the head is new: that of the file is for pool = {pool}, and pool = {row.pool} here"
    elif set(theirs) != set(ours) or len(set(theirs)) < len(theirs):
        note = f"the head is new: {len(set(theirs) & set(ours))} of the {len(ours)} classes are in the file"
    elif not all(name in chosen.tensors and chosen.tensors[name].shape == own[name].shape for name in head):
        note = "the head is new: that of the file has another shape"
    else:
        order = [theirs.index(name) for name in ours]
        moved = {name: chosen.tensors[name][order] for name in head}
        how = "" if theirs == ours else ", put into the order of the images' classes"
        note = f"the head is kept, as the {len(ours)} classes are the same{how}"
        return chosen._replace(tensors={**chosen.tensors, **moved}, notes=(*chosen.notes, note)), head
    return chosen._replace(notes=(*chosen.notes, note)), ()


def _apply(network: nn.Module, row: BackboneRow, weights: _Candidate, allow_missing: bool) -> LoadedWeights:
    """Put weights into the network once nothing is left that could be wrong with them."""
    source, bands = weights.source, weights.preprocessing.bands
    given = _adapt(network, row, weights.chosen.tensors, source)
    own = network.state_dict()
    new_head = () if weights.head else new_layers(network, row.family)
    given = {name: value for name, value in given.items() if _COUNTER not in name or name in own}
    usable = {name: value for name, value in given.items() if name in own and name not in new_head}
    require_numbers(usable, own, source)
    _resize_positions(row, usable, own)
    if not weights.is_of_bands:
        stem = first_convolution(network, row.family.stages(network))[0] + ".weight"
        _carry_over_bands(stem, usable, own, source, bands)
    require_shapes(row.name, source, given, usable, own)
    decisive = _decisive(network, row)
    missing = [name for name in own if name in decisive and name not in usable]
    dropped = [name for name in given if name not in usable]
    if not allow_missing:
        require_all(row.name, source, missing, dropped, len(decisive))
        require_no_more(
            row.name, source, {name: given[name] for name in dropped}, own, new_layers(network, row.family)
        )
    # With the layers' version numbers, which a plain dictionary of tensors lacks.
    versioned = OrderedDict(usable)
    versioned._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(versioned, strict=False)
    report = [f"weights: {source}: {len(usable)} tensors loaded", *weights.chosen.notes]
    if dropped:
        report.append(f"dropped {list_some(dropped)}")
    complete = "none missing" if weights.head else "none missing but the new head"
    report.append(f"missing {list_some(missing)}, which start at random" if missing else complete)
    return LoadedWeights("; ".join(report), weights.preprocessing, needs_head=not weights.head)


def _adapt(network: nn.Module, row: BackboneRow, given: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors under the network's names; timm's own conversion fails in its own ways where they are not whole."""
    try:
        return row.family.adapt_weights(network, given)
    except WeightsError as error:
        raise WeightsError(f"weights = {source!r}: {error}") from None
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"weights = {source!r} do not fit {row.name}: timm cannot convert them ({type(error).__name__}: "
            f"{error}). Pass the backbone they were made with"
        ) from error


def _resize_positions(row: BackboneRow, usable: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Resample position embeddings of another image size, where they form a square grid."""
    name, prefix = row.family.position_embedding, row.family.num_prefix_tokens
    if name is None or name not in usable or usable[name].shape == own[name].shape or usable[name].dim() != 3:
        return
    count = usable[name].shape[1] - prefix
    if count < 1 or round(count**0.5) ** 2 != count or usable[name].shape[2] != own[name].shape[2]:
        return  # a misfit, which is reported with all others
    grid_side = round((own[name].shape[1] - prefix) ** 0.5)
    usable[name] = resample_positions(usable[name], (grid_side, grid_side), prefix)


def _carry_over_bands(
    stem: str, usable: dict[str, Tensor], own: Mapping[str, Tensor], source: str, bands: tuple[str, ...]
) -> None:
    """Inflate a first convolution for RGB; refuse one for other channels than the images have."""
    if stem not in usable or usable[stem].dim() != own[stem].dim():
        return
    shape = tuple(usable[stem].shape)
    if bands != RGB and shape[1] == len(RGB):
        usable[stem] = inflate_rgb(usable[stem], bands)
    elif shape[1] != own[stem].shape[1] and shape[2:] == own[stem].shape[2:]:
        have = "read as red, green, blue" if bands == RGB else f"read with the bands {', '.join(bands)}"
        raise WeightsError(
            f"weights = {source!r}: {stem} is {shape}, so they are for {counted(shape[1], 'band')}, "
            f"and the images are {have}. Name the {shape[1]} that the weights were trained on, in their order, such "
            "as --bands red=4,green=3,blue=2,nir=8; or pass weights for RGB"
        )
