"""Fine-tune a torchvision backbone on satellite images and hand it over as a feature extractor.

The public names; each is imported when it is first asked for, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sat_vg.backbone_finetuning.utils.quick_imports import without_garbage_collection

if TYPE_CHECKING:
    from sat_vg.backbone_finetuning.commands.functions import (
        check,
        compare,
        evaluate,
        export,
        extract,
        recommend,
        runs,
        tune,
    )
    from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
    from sat_vg.backbone_finetuning.models.ensemble import Ensemble
    from sat_vg.backbone_finetuning.models.factories import create_efficientnet, create_resnet, create_vit
    from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
    from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
    from sat_vg.backbone_finetuning.training.run import finetune

_HOMES = {
    "FinetuneConfig": "configs.finetune_config",
    "Ensemble": "models.ensemble",
    "FineTuneModel": "models.finetune_model",
    "FeatureExtractor": "models.feature_extractor",
    "create_resnet": "models.factories",
    "create_vit": "models.factories",
    "create_efficientnet": "models.factories",
    "finetune": "training.run",
    **dict.fromkeys(
        ("check", "compare", "evaluate", "export", "extract", "recommend", "runs", "tune"), "commands.functions"
    ),
}

__all__ = [
    "Ensemble",
    "FeatureExtractor",
    "FineTuneModel",
    "FinetuneConfig",
    "check",
    "compare",
    "create_efficientnet",
    "create_resnet",
    "create_vit",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "recommend",
    "runs",
    "tune",
]


# Modules of commands, which stood here before each had a folder; these names go with the next version.
_COMMANDS = ("predict", "shard")


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        return import_module(f"{__name__}.commands.{name}.cli")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with without_garbage_collection():
        found = import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(found, name)
