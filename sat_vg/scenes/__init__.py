"""Scenes: from one large image to chips, maps and embeddings, on a fine-tuned backbone.

The public names; each is imported when it is first asked for, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_vg.scenes.functions import draw_scene, predict_scene, search, tile

__all__ = ["draw_scene", "predict_scene", "search", "tile"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.functions"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
