"""The feature extractor in the shape that other libraries' models take a backbone. None of them is imported.

Every adapter is a module around the extractor that it is given, not a copy: weights, gradients, frozen stages and
frozen batch norm are the extractor's.
"""

from sat_vg.backbone_finetuning.models.adapters.detr import (
    DetrBackbone,
    DetrJoiner,
    MaskedImages,
    TransvgBackbone,
    as_detr,
    as_transvg,
    export_detr_state_dict,
    invert_mask,
)
from sat_vg.backbone_finetuning.models.adapters.styles import (
    BackboneOutput,
    Detectron2Backbone,
    FeatureInfo,
    HfBackbone,
    SmpEncoder,
    TensorBackbone,
    TimmBackbone,
    TorchvisionBackbone,
    as_detectron2,
    as_hf,
    as_smp,
    as_tensor,
    as_timm,
    as_torchvision,
)

__all__ = [
    "BackboneOutput", "Detectron2Backbone", "DetrBackbone", "DetrJoiner", "FeatureInfo", "HfBackbone",
    "MaskedImages", "SmpEncoder", "TensorBackbone", "TimmBackbone", "TorchvisionBackbone", "TransvgBackbone",
    "as_detectron2", "as_detr", "as_hf", "as_smp", "as_tensor", "as_timm", "as_torchvision", "as_transvg",
    "export_detr_state_dict", "invert_mask",
]  # fmt: skip
