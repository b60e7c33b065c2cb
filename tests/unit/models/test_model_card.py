"""The Python on a model card, for images that are not simply 8-bit RGB."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sat_vg.backbone_finetuning.models.exports.contract import Contract
from sat_vg.backbone_finetuning.models.exports.model_card import input_steps, prepare_lines
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Levels, Preprocessing

CONTRACT = Contract(format="safetensors", part="classifier")


def test_deep_images_are_not_taken_as_they_are():
    """Pillow would cut their values down by itself, and nobody would see it."""
    levels = Levels((100.0,) * 3, (3000.0,) * 3)
    deep = Preprocessing(image_size=32, bands=RGB, levels=levels)
    assert "spread 16-bit values" in input_steps(deep, CONTRACT)
    defined = {"torch": torch, "v2": v2}
    lines = prepare_lines(deep, CONTRACT)
    assert "16-bit values, spread" in lines
    exec(lines, defined)
    spread = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    expected = deep.normalise(deep.geometry()(spread)[None])[0]
    assert torch.allclose(defined["prepare"](spread), expected, atol=1e-5)
    with pytest.raises((TypeError, ValueError)):
        defined["prepare"](Image.new("I;16", (40, 40), 900))
