"""Measure a backbone: parameters, channels and strides of every stage."""

import copy

import torch
from torch import nn

from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.networks.facts import BackboneFacts, StageFacts
from sat_vg.backbone_finetuning.models.networks.table import BackboneRow, build_network
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing


def measure(row: BackboneRow, network: nn.Module) -> BackboneFacts:
    """The facts of a backbone, read off a network that was built for it; it may lie on the meta device."""
    stages = row.family.stages(network)
    with_maps = [stage.name for stage in stages if stage.gives_map]
    extractor = FeatureExtractor(
        copy.deepcopy(network), row, preprocessing=Preprocessing(image_size=224), out_names=with_maps
    )
    maps = dict(zip(extractor.out_names, zip(extractor.channels, extractor.strides, strict=True), strict=True))
    published = row.family.weights(row.name)
    best = published.get("DEFAULT")
    return BackboneFacts(
        name=row.name,
        family=row.family.name,
        stages=tuple(
            StageFacts(
                stage.name,
                sum(p.numel() for _, p in stage.named_parameters(network)),
                *maps.get(stage.name, (None, None)),
            )
            for stage in stages
        ),
        embed_dim=extractor.embed_dim,
        size_divisibility=extractor.size_divisibility,
        image_size=None if best is None else best.image_size,
        interpolation=None if best is None else best.interpolation,
        weights=tuple(sorted({entry.name for entry in published.values()})),
    )


def has_grouped_convolutions(row: BackboneRow) -> bool:
    """Whether some convolution has several groups of several channels, as ResNeXt's and RegNet's have."""
    with torch.device("meta"):
        network = build_network(row, num_classes=2, image_size=224)
    return any(
        isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels for module in network.modules()
    )
