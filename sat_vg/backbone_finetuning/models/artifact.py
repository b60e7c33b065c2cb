"""best_model.pt: the self-contained product of a run, as tensors and plain data."""

import platform
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
import torchvision
from torch import Tensor

import sat_vg
from sat_vg.backbone_finetuning.models.probabilities import TaskName
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors

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


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What best_model.pt holds.

    Attributes:
        backbone: torchvision's name.
        class_names: in the order of the classifier's outputs.
        preprocessing: what an image goes through before the backbone.
        state_dict: weights under torchvision's own names, classifier included.
        dropout: before the classifier, in training.
        config: the run's configuration, plain data; empty where there was none.
        metrics: the validation metrics of these weights, plain numbers.
        versions: of the libraries that wrote the file.
        temperature: what logits are divided by where probabilities are wanted.
        task: whether an image has one class or any number of them.
    """

    backbone: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    state_dict: dict[str, Tensor]
    dropout: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    temperature: float = 1.0
    task: TaskName = "single_label"


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
    save_tensors(
        path,
        {
            "format": FORMAT,
            "schema": SCHEMA,
            "backbone": artifact.backbone,
            "class_names": list(artifact.class_names),
            "preprocessing": artifact.preprocessing.to_dict(),
            "dropout": artifact.dropout,
            "temperature": artifact.temperature,
            "task": artifact.task,
            "config": artifact.config,
            "metrics": artifact.metrics,
            "versions": current_versions(),
            "state_dict": _on_cpu(artifact.state_dict),
        },
    )


def _on_cpu(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
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
    if not content["class_names"] or not all(isinstance(name, str) for name in content["class_names"]):
        raise CheckpointError(f"{str(path)!r} has no class names, or ones that are no texts: it is altered")
    if not all(isinstance(name, str) and isinstance(v, Tensor) for name, v in content["state_dict"].items()):
        raise CheckpointError(f"{str(path)!r} has weights that are no named tensors: it is altered")
    if not 0 <= content["dropout"] < 1:
        raise CheckpointError(f"{str(path)!r} has a dropout of {content['dropout']}: it is altered")
    temperature = content.get("temperature", 1.0)  # files from before calibration have none
    if not isinstance(temperature, (int, float)) or not 0 < temperature < 1e6:
        raise CheckpointError(f"{str(path)!r} has a temperature of {temperature!r}: it is altered")
    task = content.get("task", "single_label")  # files from before several classes an image have none
    if task not in get_args(TaskName):
        raise CheckpointError(
            f"{str(path)!r} has the task {task!r}, and this sat_vg {sat_vg.__version__} knows "
            f"{' and '.join(get_args(TaskName))}: it is altered, or of a newer version"
        )
    return Artifact(
        backbone=content["backbone"],
        class_names=tuple(content["class_names"]),
        preprocessing=Preprocessing.from_dict(content["preprocessing"]),
        state_dict=content["state_dict"],
        dropout=content["dropout"],
        config=content["config"],
        metrics=content["metrics"],
        versions=content["versions"],
        temperature=float(temperature),
        task=task,
    )
