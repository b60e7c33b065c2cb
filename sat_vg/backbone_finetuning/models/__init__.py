"""Backbones as ordered stages, the fine-tuned model and its feature extractor."""

from importlib import import_module
from typing import Any

_FACTORIES = ("create_efficientnet", "create_resnet", "create_vit")


def __getattr__(name: str) -> Any:  # imported when asked for: they need torch
    if name in _FACTORIES:
        return getattr(import_module(f"{__name__}.factories"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
