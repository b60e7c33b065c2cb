"""``create_resnet``, ``create_vit``, ``create_efficientnet``: models from a dictionary."""

from collections.abc import Mapping, Sequence
from typing import Any

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import find_backbone
from sat_vg.backbone_finetuning.utils.errors import ConfigError

# First words of timm's names; its networks are one family here.
_TIMM_STARTS = {
    "ResNet": ("timm:resnet", "timm:resnext", "timm:wide_resnet", "timm:seresnet", "timm:ecaresnet"),
    "ViT": ("timm:vit_", "timm:deit", "timm:beit", "timm:eva"),
    "EfficientNet": ("timm:efficientnet", "timm:tf_efficientnet"),
}
_KEYS = ("architecture", "num_classes", "pretrained", "freeze_layers", "dropout", "weights", "image_size")
_VIT_KEYS = (*_KEYS, "attention_dropout", "pool")


def create_resnet(settings: Mapping[str, Any]) -> FineTuneModel:
    """A ResNet from a dictionary such as ``{"architecture": "resnet50", "num_classes": 10, "freeze_layers": 2}``.

    Args:
        settings: ``architecture`` (torchvision's name or timm:NAME) and ``num_classes``; optionally ``pretrained``
            (default True), ``freeze_layers`` (freeze so many stages from the input on), ``dropout``, ``weights``,
            ``image_size``.

    Raises:
        ConfigError: a key is unknown or missing, or the architecture is no ResNet; timm's count by their names.
    """
    return _create("ResNet", **settings)


def create_vit(settings: Mapping[str, Any]) -> FineTuneModel:
    """A vision transformer from a dictionary; keys as in ``create_resnet``, ``attention_dropout`` and ``pool``."""
    return _create("ViT", _VIT_KEYS, **settings)


def create_efficientnet(settings: Mapping[str, Any]) -> FineTuneModel:
    """An EfficientNet from a dictionary; keys as in ``create_resnet``."""
    return _create("EfficientNet", **settings)


def kind_of_timm(name: str) -> str | None:
    """The kind of a network of timm by its name, such as ``ViT`` of ``timm:deit3_base_patch16_224``; else None."""
    fitting = (kind for kind, starts in _TIMM_STARTS.items() if name.startswith(starts))
    return next(fitting, None)


def _create(family: str, known: Sequence[str] = _KEYS, /, **settings: Any) -> FineTuneModel:
    unknown = [key for key in settings if key not in known]
    missing = [key for key in ("architecture", "num_classes") if key not in settings]
    if unknown or missing:
        raise ConfigError(f"unknown keys: {unknown}, missing keys: {missing}; known: {', '.join(known)}")
    row = find_backbone(settings.pop("architecture"))
    if family not in (row.family.name, kind_of_timm(row.name)):
        raise ConfigError(f"architecture = {row.name!r} is no {family}")
    return FineTuneModel(row.name, **settings)
