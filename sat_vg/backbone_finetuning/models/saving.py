"""A model into files and back: best_model.pt, and the weights alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.models.artifact import Artifact
from sat_vg.backbone_finetuning.models.staged_classifier import StagedClassifier
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError
from sat_vg.backbone_finetuning.utils.tensor_files import save_safetensors


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
    )


def write_weights(model: StagedClassifier, path: Path) -> None:
    """See ``FineTuneModel.save_safetensors``."""
    if path.suffix != ".safetensors":
        raise ConfigError(f"path = {str(path)!r}: must end in .safetensors, by which it is known when it is read")
    metadata = {
        "backbone": model.backbone,
        "class_names": json.dumps(model.class_names),
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
        "task": model.task,
    }
    save_safetensors(path, model.network.state_dict(), metadata)


def put_into(model: StagedClassifier, artifact: Artifact, path: str | Path) -> None:
    """Put the weights of an artifact, and what goes with them, into a model of its backbone.

    Raises:
        CheckpointError: they do not fit.
    """
    try:
        # The very tensors, not copies of their values: their memory layout decides how convolutions round.
        model.network.load_state_dict(artifact.state_dict, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{str(path)!r} does not fit its own backbone {model.backbone}: {error}") from error
    model.preprocessing, model.temperature = artifact.preprocessing, artifact.temperature
