"""Visual grounding on a fine-tuned backbone: an image and a phrase give the box of what the phrase names."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_vg.grounding.config import GroundingConfig
    from sat_vg.grounding.model import GroundingModel, Prediction
    from sat_vg.grounding.training import train_grounding

__all__ = ["GroundingConfig", "GroundingModel", "Prediction", "train_grounding"]
_MODULES = {"GroundingConfig": "config", "train_grounding": "training"}


def __getattr__(name: str) -> Any:  # imported when used: the command line needs no torch
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'model')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
