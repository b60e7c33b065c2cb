"""A model into files and back: best_model.pt, the self-contained product of a run, and the weights alone."""

import json
import platform
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
import torchvision
from torch import Tensor

import sat_vg
from sat_vg.backbone_finetuning.configs.choices import Pool
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES
from sat_vg.backbone_finetuning.models.probabilities import TaskName
from sat_vg.backbone_finetuning.models.staged_classifier import Model, StagedClassifier
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors

BEST_MODEL = "best_model.pt"
FORMAT = "sat_vg.best_model"
SCHEMA = 1
_PARTS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "backbone": str,
    "class_names": list,
    "preprocessing": dict,
    "dropout": (int, float),
    "config": dict,
    "metrics": dict,
    "versions": dict,
    "state_dict": dict,
}
_TYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}  # of weights, all of them of one
_COUNTERS = {torch.int64, torch.int32, torch.bool}  # steps, positions, masks


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What best_model.pt holds."""

    backbone: str
    class_names: tuple[str, ...]  # in the order of the classifier's outputs
    preprocessing: Preprocessing
    state_dict: dict[str, Tensor]  # under torchvision's own names, classifier included
    dropout: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)  # of the run, plain data; empty where there was none
    metrics: dict[str, float] = field(default_factory=dict)  # validation metrics of these weights
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that wrote the file
    temperature: float = 1.0  # divisor of the logits where probabilities are wanted
    task: TaskName = "single_label"
    pool: Pool = "default"


def current_versions() -> dict[str, str]:
    """Versions of what computes here."""
    return {
        "sat_vg": sat_vg.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


def write_artifact(path: Path, artifact: Artifact) -> None:
    """Write best_model.pt, whole or not at all.

    Raises:
        WriteError: the folder cannot be written to or the disk is full.
    """
    content = {
        **vars(artifact),
        "format": FORMAT,
        "schema": SCHEMA,
        "class_names": list(artifact.class_names),
        "preprocessing": artifact.preprocessing.to_dict(),
        "versions": current_versions(),
        "state_dict": on_cpu(artifact.state_dict),
    }
    save_tensors(path, content)


def on_cpu(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The tensors on the CPU, with the layers' version numbers that torch keeps beside them (MNASNet needs its)."""
    moved = OrderedDict((name, value.detach().cpu()) for name, value in state_dict.items())
    moved._metadata = getattr(state_dict, "_metadata", {})  # type: ignore[attr-defined]
    return moved


def read_artifact(path: Path) -> Artifact:
    """Read best_model.pt.

    Raises:
        CheckpointError: the file is missing, damaged, no artifact, or of a newer schema.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{str(path)!r} is no best_model.pt of sat_vg. Plain weights are a start for training: --weights "
            "PATH; a last.pt goes on with its run: --resume PATH"
        )
    lacking = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
    if lacking:
        raise CheckpointError(f"{str(path)!r} lacks {', '.join(lacking)}: it is altered; use another best_model.pt")
    if content["schema"] > SCHEMA:
        raise CheckpointError(
            f"{str(path)!r} has schema {content['schema']}; this sat_vg {sat_vg.__version__} reads up to {SCHEMA}. "
            f"It was written by sat_vg {content['versions'].get('sat_vg')!r}: upgrade to that"
        )
    # Older files have none of these.
    temperature, task, pool = (content.get(name, getattr(Artifact, name)) for name in ("temperature", "task", "pool"))
    for name, value, known in (("task", task, get_args(TaskName)), ("pool", pool, get_args(Pool))):
        if value not in known:
            raise CheckpointError(
                f"{str(path)!r} has the {name} {value!r}, and this sat_vg {sat_vg.__version__} knows "
                f"{' and '.join(known)}: it is altered, or of a newer version"
            )
    class_names = content["class_names"]
    are_names = bool(class_names) and all(isinstance(name, str) for name in class_names)
    most_frequent, frequency = Counter(class_names).most_common(1)[0] if are_names else ("", 1)
    types = {v.dtype for v in content["state_dict"].values() if isinstance(v, Tensor)} - _COUNTERS
    are_named_tensors = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content["state_dict"].items())
    for is_sound, fault in (
        (are_names, "no class names, or ones that are no texts"),
        (frequency == 1, f"two classes of the name {most_frequent!r}"),
        (are_named_tensors, "weights that are no named tensors"),
        (types <= _TYPES and len(types) <= 1, f"weights of the types {', '.join(sorted(map(str, types)))}"),
        (0 <= content["dropout"] < 1, f"a dropout of {content['dropout']}"),
        (isinstance(temperature, (int, float)) and 0 < temperature < 1e6, f"a temperature of {temperature!r}"),
    ):
        if not is_sound:
            raise CheckpointError(f"{str(path)!r} has {fault}: it is altered")
    return Artifact(
        preprocessing=Preprocessing.from_dict(content["preprocessing"]),
        class_names=tuple(class_names),
        temperature=float(temperature),
        task=task,
        pool=pool,
        **{name: content[name] for name in ("backbone", "state_dict", "dropout", "config", "metrics", "versions")},
    )


def artifact_of(model: StagedClassifier, config: Mapping[str, Any], metrics: Mapping[str, float]) -> Artifact:
    """What best_model.pt holds of a model."""
    return Artifact(
        backbone=model.backbone,
        class_names=model.class_names,
        preprocessing=model.preprocessing,
        state_dict=model.network.state_dict(),
        dropout=model.dropout.p,
        config=dict(config),
        metrics=dict(metrics),
        temperature=model.temperature,
        task=model.task,
        pool=model.row.pool,
    )


def model_of(artifact: Artifact, build: Callable[[], Model], path: str | Path) -> Model:
    """The model of an artifact; ``build`` makes one of its backbone, whose weights the artifact replaces.

    Raises:
        CheckpointError: the weights do not fit.
    """
    # timm keeps tensors of one network for the next, which must have values.
    model = _built_without_values(build) if artifact.backbone in BACKBONES else None
    model = build() if model is None else model
    try:
        # The very tensors, not copies of their values: their memory layout decides how convolutions round.
        model.network.load_state_dict(artifact.state_dict, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{str(path)!r} does not fit its own backbone {model.backbone}: {error}") from error
    model.preprocessing, model.temperature = artifact.preprocessing, artifact.temperature
    return model


def _built_without_values(build: Callable[[], Model]) -> Model | None:
    """A model on the meta device, so that no random weights are drawn; None where its state dict would not be all."""
    try:
        with torch.device("meta"):
            model = build()
    except RuntimeError:  # it computes with tensors while it is built, as RegNet does
        return None
    network = model.network
    named = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    has_others = any(isinstance(value, Tensor) for module in network.modules() for value in vars(module).values())
    return None if has_others or named - set(network.state_dict()) else model


def safetensors_metadata_of(model: StagedClassifier) -> dict[str, str]:
    """What stands beside the tensors in a file of safetensors."""
    return {
        "backbone": model.backbone,
        "class_names": json.dumps(model.class_names),
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
        "task": model.task,
        "pool": model.row.pool,
    }
