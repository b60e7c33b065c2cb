"""Dilation of the last stage: torchvision's for ResNets, the same features at twice the places for others."""

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter

from sat_vg.backbone_finetuning.models.adapters import as_detr, as_torchvision, as_transvg
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import ConfigError

# Without squeeze-and-excitation, which sees the whole map, the old map lies within the new one.
LOCAL = ["resnet18", "custom_cnn", "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf"]
OTHERS = ["mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"]


def model_of(name: str) -> FineTuneModel:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    model = FineTuneModel(name, 3, pretrained=False, image_size=64).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.7, 1.3)
    return model


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_a_resnets_maps_are_torchvisions_to_the_bit(name):
    model = model_of(name)
    reference = models.get_model(name, num_classes=3, replace_stride_with_dilation=[False, False, True]).eval()
    reference.load_state_dict(model.network.state_dict())
    body = IntermediateLayerGetter(reference, {layer: layer for layer in ("layer1", "layer2", "layer3", "layer4")})
    extractor = model.get_feature_extractor(dilation=True)
    assert extractor.strides == (4, 8, 16, 16)
    assert extractor.out_names == model.get_feature_extractor().out_names
    images = torch.randn(1, 3, 96, 75)
    with torch.no_grad():
        maps = extractor(images)
        assert all(torch.equal(maps[layer], features) for layer, features in body(images).items())


@pytest.mark.parametrize("name", [*LOCAL, *OTHERS, "timm:resnet18"])
def test_the_same_features_at_twice_the_places(name):
    model = model_of(name)
    plain, dilated = model.get_feature_extractor(), model.get_feature_extractor(dilation=True)
    assert dilated.strides == (*plain.strides[:-1], plain.strides[-1] // 2)
    assert dilated.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        few, many = (list(extractor(images).values())[-1] for extractor in (plain, dilated))
        assert many.shape[2:] == (2 * few.shape[2], 2 * few.shape[3])
        if name not in OTHERS:
            torch.testing.assert_close(many[:, :, ::2, ::2], few, rtol=1e-4, atol=1e-4)
        assert dilated.forward_pooled(images).shape == plain.forward_pooled(images).shape


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_b_32", "convolutions alone"),
        ("swin_t", "convolutions alone"),
        ("convnext_tiny", "convolutions alone"),
        ("densenet121", "pooling"),
        ("vgg11_bn", "pooling"),
        ("squeezenet1_1", "pooling"),
        ("timm:resnet26d", "pooling"),
    ],
)
def test_others_say_why_they_cannot(name, reason):
    with pytest.raises(ConfigError, match=rf"dilation = True: {name}.*{reason}.*resnet50.*out_names"):
        model_of(name).get_feature_extractor(dilation=True)


def test_consumers_get_the_finer_map():
    class Samples:
        def __init__(self, tensors, mask):
            self.tensors, self.mask = tensors, mask

    extractor = model_of("resnet18").get_feature_extractor(dilation=True)
    images, mask = torch.randn(1, 3, 128, 128), torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[:, :, 96:] = True
    with torch.no_grad():
        levels, _ = as_detr(extractor, lambda level: level.tensors)(Samples(images, mask))
        assert levels[-1].tensors.shape[2:] == levels[-1].mask.shape[1:] == (8, 8)
        assert levels[-1].mask[0].sum(1).eq(2).all()
        assert as_transvg(extractor)(Samples(images, mask))[1].shape == (64, 1, 512)
        detector = models.detection.FasterRCNN(
            as_torchvision(extractor, 16), num_classes=3, min_size=128, max_size=128
        )
        assert "boxes" in detector.eval()([torch.rand(3, 128, 128)])[0]
