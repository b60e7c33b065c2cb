"""What people hand to an extractor by mistake: each gets a sentence, or works."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sat_vg.backbone_finetuning.models import adapters
from sat_vg.backbone_finetuning.models.feature_pyramid import SimpleFeaturePyramid
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import UserError
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles, Preprocessing

PIXELS = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NORMALISED = torch.randn(2, 3, 64, 64)


@pytest.fixture(scope="module")
def model():
    return FineTuneModel("resnet18", 3, pretrained=False, image_size=64).eval()


@pytest.fixture(scope="module")
def vit():
    return FineTuneModel("vit_b_32", 3, pretrained=False, image_size=64).eval()


def consumers_of(extractor):
    """Everything that takes images, by name."""

    def masked(consumer):
        return lambda images: consumer(SimpleNamespace(tensors=images, mask=None))

    return {
        "forward": extractor,
        "forward_with_mask": lambda images: extractor.forward_with_mask(images, None),
        "forward_tokens": extractor.forward_tokens,
        "as_tensor": adapters.as_tensor(extractor),
        "as_detr": masked(adapters.as_detr(extractor, lambda level: level.tensors)),
        "as_transvg": masked(adapters.as_transvg(extractor)),
        "as_timm": adapters.as_timm(extractor),
        "as_hf": adapters.as_hf(extractor),
        "as_detectron2": adapters.as_detectron2(extractor),
    }


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS, "torch.uint8.*normalise"),
        (PIXELS.long(), "torch.int64.*normalise"),
        (NORMALISED > 0, "torch.bool.*normalise"),
        (NORMALISED[0], r"\[3, 64, 64\].*images\[None\]"),
        (NORMALISED[:, :1], r"\[2, 1, 64, 64\].*\[B, 3, H, W\]"),
        (NORMALISED.permute(0, 2, 3, 1), r"\[2, 64, 64, 3\].*\[B, 3, H, W\]"),
        (NORMALISED[None], r"\[1, 2, 3, 64, 64\].*\[B, 3, H, W\]"),
        (NORMALISED.numpy(), "ndarray.*from_numpy"),
        (list(NORMALISED), "list.*tensor"),
        ("image.png", r"str.*transforms\(\)"),
        (NORMALISED.double(), "torch.float64.*torch.float32"),
        (NORMALISED.half(), "torch.float16.*torch.float32.*autocast"),
    ],
    ids=["uint8", "int64", "bool", "CHW", "grey", "NHWC", "5-D", "array", "list", "path", "double", "half"],
)
def test_what_is_no_normalised_batch_is_refused_everywhere(model, vit, images, message):
    extractor = model.get_feature_extractor()
    consumers = consumers_of(extractor) | {
        "forward_pooled": extractor.forward_pooled,
        "as_smp": adapters.as_smp(extractor),
        "as_torchvision": adapters.as_torchvision(extractor),
        "model": model,
        "predict_probabilities": model.predict_probabilities,
        "get_attention_maps": vit.get_attention_maps,
    }
    pyramid = SimpleFeaturePyramid(vit.get_feature_extractor(), channels=8)
    consumers |= {f"pyramid {name}": consumer for name, consumer in consumers_of(pyramid).items()}
    for consumer in consumers.values():
        with pytest.raises(UserError, match=message), torch.no_grad():
            consumer(images)


def test_what_works(model):
    extractor = model.get_feature_extractor()
    with torch.no_grad():
        assert extractor(NORMALISED[:0])["layer4"].shape == (0, 512, 2, 2)
        assert extractor.forward_tokens(NORMALISED[:0])[1].shape == (4, 0, 512)
        with torch.autocast("cpu", torch.bfloat16):
            assert extractor(NORMALISED.bfloat16())["layer4"].shape == (2, 512, 2, 2)
        assert extractor.double()(NORMALISED.double())["layer4"].dtype == torch.float64


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 64, 64), dtype=bool), r"mask is a ndarray.*\(2, 64, 64\)"),
        (torch.zeros(64, 64, dtype=torch.bool), r"mask has shape \(64, 64\).*\(2, 64, 64\)"),
        (torch.zeros(2, 1, 64, 64), r"mask has shape \(2, 1, 64, 64\)"),
    ],
)
def test_masks_that_do_not_fit(model, mask, message):
    with pytest.raises(UserError, match=message):
        model.get_feature_extractor().forward_with_mask(NORMALISED, mask)


@pytest.mark.parametrize("make", [lambda e: adapters.as_detr(e, lambda level: level), adapters.as_transvg])
def test_a_plain_tensor_is_no_masked_batch(model, make):
    with pytest.raises(UserError, match=r"Tensor.*\.mask.*NestedTensor"):
        make(model.get_feature_extractor())(NORMALISED)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS / 255, r"torch.float32.*uint8.*\(255 \* images\)"),
        (PIXELS.float(), "torch.float32.*uint8"),
        ((PIXELS / 255).half(), "torch.float16.*uint8"),
        ((PIXELS / 255).double(), "torch.float64.*uint8"),
        (torch.full((1, 3, 8, 8), torch.nan), "torch.float32.*uint8"),
        (NORMALISED, "normalised already go to the model as they are"),
        (PIXELS.to(torch.uint16), "torch.uint16.*uint8"),
        (PIXELS.to(torch.int16), "torch.int16.*uint8"),
        (PIXELS > 9, "torch.bool.*uint8"),
        (PIXELS[:, :1], r"\[2, 1, 64, 64\].*red, green, blue"),
        (PIXELS.permute(0, 2, 3, 1), r"\[2, 64, 64, 3\].*\[B, 3, H, W\]"),
        (PIXELS[0, 0], r"\[64, 64\]"),
        (PIXELS.numpy(), "ndarray.*from_numpy"),
        (Image.new("RGB", (8, 8)), "Image.*tensor"),
    ],
)
def test_an_8_bit_model_normalises_uint8_alone(model, images, message):
    with pytest.raises(UserError, match=message):
        model.get_feature_extractor().normalise(images)
    assert torch.equal(model.preprocessing.normalise(PIXELS)[0], model.preprocessing.normalise(PIXELS[0]))


def test_a_model_of_geotiffs_takes_their_values_in_any_type(model):
    extractor = model.get_feature_extractor()
    extractor.preprocessing = Preprocessing(
        image_size=64,
        mean=(900.0, 1000.0, 1100.0),
        std=(300.0, 200.0, 100.0),
        scale=1.0,
        files=BandFiles((1, 2, 3), "uint16", 3),
    )
    values = torch.randint(3000, (1, 3, 8, 8))
    expected = (values - torch.tensor([900, 1000, 1100]).view(-1, 1, 1)) / torch.tensor([300, 200, 100]).view(
        -1, 1, 1
    )
    for dtype in (torch.uint16, torch.int32, torch.float32, torch.float64):
        torch.testing.assert_close(extractor.normalise(values.to(dtype)), expected)
    holes = values.float()
    holes[0, :, 2] = torch.tensor([torch.nan, torch.inf, -torch.inf])[:, None]
    assert (extractor.normalise(holes)[0, :, 2] == 0).all()  # missing: the mean, as in the training
    for wrong in (values.to(torch.complex64), values > 5, values[:, :2]):
        with pytest.raises(UserError):
            extractor.normalise(wrong)


@pytest.mark.parametrize(
    ("mean", "std", "images", "is_right"),
    [
        ((1500.0,), (400.0,), torch.rand(1, 1, 8, 8), False),  # reflectances for stored values
        ((1500.0,), (400.0,), torch.rand(1, 1, 8, 8).half(), False),
        ((120.0,), (60.0,), torch.rand(1, 1, 8, 8), False),  # of ToTensor
        ((0.15,), (0.04,), torch.randint(500, 3000, (1, 1, 8, 8)), False),  # the other way round
        ((0.15,), (0.04,), torch.randint(500, 3000, (1, 1, 8, 8)).float(), False),
        ((1500.0,), (400.0,), torch.zeros(1, 1, 8, 8), True),  # a border, water, a missing band
        ((1500.0,), (400.0,), torch.ones(1, 1, 8, 8, dtype=torch.uint16), True),
        ((1500.0,), (400.0,), torch.full((1, 1, 8, 8), torch.nan), True),
        ((1500.0,), (400.0,), torch.rand(0, 1, 8, 8), True),
        ((0.15,), (0.04,), torch.rand(1, 1, 8, 8), True),
        ((0.15,), (0.04,), torch.tensor([1e9, 0.2]).repeat(32).view(1, 1, 8, 8), True),
    ],
)
def test_values_of_geotiffs_in_other_units_are_refused(model, mean, std, images, is_right):
    extractor = model.get_feature_extractor()
    files = BandFiles((1,), "uint16", 1)
    extractor.preprocessing = Preprocessing(image_size=64, mean=mean, std=std, scale=1.0, bands=("nir",), files=files)
    if is_right:
        assert extractor.normalise(images).isfinite().all()
    else:
        with pytest.raises(UserError, match=r"other units.*as they stand in the files"):
            extractor.normalise(images)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("image.png", r"str.*PIL\.Image\.open"),
        (Path("image.png"), r"Path.*PIL\.Image\.open"),
        (np.zeros((8, 8, 3), dtype=np.uint8), r"ndarray.*fromarray"),
        (None, "NoneType"),
        (PIXELS[0] / 255, "torch.float32.*uint8"),
        (PIXELS[0].permute(1, 2, 0), r"\[64, 64, 3\]"),
        (PIXELS[0, 0], r"\[64, 64\]"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"\[4, 8, 8\].*red, green, blue"),
        (Image.new("I;16", (8, 8)), "mode 'I;16'"),
        (Image.new("F", (8, 8)), "mode 'F'"),
    ],
)
def test_transforms_say_what_they_take(model, image, message):
    with pytest.raises(UserError, match=message):
        model.get_feature_extractor().transforms()(image)


def test_transforms_take_grey_palette_and_cmyk_images(model):
    transforms = model.get_feature_extractor().transforms()
    for image in (*(Image.new(mode, (80, 70)) for mode in ("L", "P", "RGBA", "CMYK", "1")), PIXELS[0], PIXELS[0, :1]):
        assert transforms(image).shape == (3, 64, 64)


def test_normalisation_can_be_traced_and_used_afterwards(model):
    class Whole(torch.nn.Module):
        def forward(self, images):
            return preprocessing.normalise(images)

    preprocessing = Preprocessing(
        image_size=64, mean=(0.1, 0.2, 0.3)
    )  # of its own, so that nothing is remembered yet
    program = torch.export.export(Whole(), (PIXELS,), strict=False)
    torch.testing.assert_close(program.module()(PIXELS), preprocessing.normalise(PIXELS))
