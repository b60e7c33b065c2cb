"""Parameters and operations are those that torchvision publishes; speed is measured in turns."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models

from sat_vg.backbone_finetuning.evaluation.costs import (
    Network,
    Timing,
    count_flops,
    count_parameters,
    images_per_second,
)
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.precision import Precision

PUBLISHED = {
    "resnet18": models.ResNet18_Weights,
    "mobilenet_v2": models.MobileNet_V2_Weights,
    "vit_b_32": models.ViT_B_32_Weights,
    "swin_t": models.Swin_T_Weights,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_costs_are_the_published_ones(name):
    meta = PUBLISHED[name].DEFAULT.meta
    model = FineTuneModel(name, 1000, pretrained=False, image_size=224)
    assert count_parameters(model) == meta["num_params"]
    assert count_flops(model, 224) / 2e9 == pytest.approx(meta["_ops"], abs=6e-4)  # they count multiply-adds


def test_operations_grow_with_the_image_and_not_with_frozen_stages():
    model = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=64)
    small = count_flops(model, 64)
    assert count_flops(model, 128) > 3.5 * small
    model.set_trainable([])
    assert count_flops(model, 64) == small


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "timm:vit_tiny_patch16_224"])
def test_operations_of_attention_whatever_kernel_torch_would_pick(name):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    model = FineTuneModel(name, 3, pretrained=False, image_size=64)
    counts = []
    for trainable in (model.stage_names, []):
        model.set_trainable(trainable)  # without gradients torch takes one fused kernel for a whole layer
        for context in (torch.enable_grad, torch.inference_mode):
            with context(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                counts.append(count_flops(model, 64))
    assert len(set(counts)) == 1
    assert torch.backends.mha.get_fastpath_enabled()  # as it was


def test_speed_is_in_images_per_second():
    precision = Precision(torch.device("cpu"), torch.float32)
    networks = {
        key: Network(FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=size), size, precision)
        for key, size in {"small": 32, "large": 224}.items()
    }
    speeds = images_per_second(networks, Timing(batch_size=4, rounds=3, seconds=0.02))
    assert list(speeds) == ["small", "large"]
    assert speeds["small"] > 2 * speeds["large"] > 0
