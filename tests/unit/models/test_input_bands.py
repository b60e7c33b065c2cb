"""Bands other than red, green, blue."""

import pytest
import torch
from PIL import Image
from torchvision import models

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.input_bands import inflate_rgb
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import IMAGENET_MEAN

BANDS = ("blue", "green", "red", "nir")


@pytest.fixture(scope="module")
def rgb_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(models.resnet18().state_dict(), path)
    return path


def test_each_colour_keeps_its_own_weights_and_the_scale():
    weight = torch.randn(4, 3, 5, 5)
    red, green, blue = weight.unbind(1)
    inflated = inflate_rgb(weight, BANDS)
    mean = weight.mean(1)
    torch.testing.assert_close(inflated, 0.75 * torch.stack([blue, green, red, mean], 1))
    torch.testing.assert_close(inflated.sum(1), 0.75 * (weight.sum(1) + mean))
    same_everywhere = torch.randn(1, 1, 9, 9)
    for bands in (BANDS, ("gray",), ("vv", "vh"), ("nir", "swir", "red", "blue", "coastal")):
        new = torch.conv2d(
            same_everywhere.expand(-1, len(bands), -1, -1),
            inflate_rgb(weight.mean(1, True).expand(-1, 3, -1, -1), bands),
        )
        old = torch.conv2d(same_everywhere.expand(-1, 3, -1, -1), weight)
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_colours_in_another_order_give_the_same_features(rgb_file):
    rgb = FineTuneModel("resnet18", 3, weights=str(rgb_file), image_size=64)
    bgr = FineTuneModel("resnet18", 3, weights=str(rgb_file), image_size=64, bands=("blue", "green", "red"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(bgr.eval().forward_pooled(images.flip(1)), rgb.eval().forward_pooled(images))
    assert bgr.preprocessing.mean == IMAGENET_MEAN[::-1]


def test_four_bands_from_rgb_weights_through_checkpoint_and_extractor(rgb_file, tmp_path):
    model = FineTuneModel("resnet18", 3, weights=str(rgb_file), image_size=64, bands=BANDS)
    assert "120 tensors loaded" in model.weights_report
    assert model.in_channels == 4
    assert model.preprocessing.mean[:3] == IMAGENET_MEAN[::-1]
    assert model.preprocessing.mean[3] == pytest.approx(sum(IMAGENET_MEAN) / 3)
    own = torch.load(rgb_file, weights_only=True)["conv1.weight"]
    torch.testing.assert_close(model.network.conv1.weight[:, 2], 0.75 * own[:, 0])
    model.eval().save_checkpoint(tmp_path / "m.pt")
    loaded = FineTuneModel.load_checkpoint(tmp_path / "m.pt")
    extractor = loaded.get_feature_extractor()
    assert (extractor.bands, extractor.in_channels, len(extractor.mean)) == (BANDS, 4, 4)
    images = torch.randint(256, (2, 4, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(extractor.normalise(images)), model(model.preprocessing.normalise(images)))
        assert extractor(extractor.normalise(images))["layer4"].shape == (2, 512, 2, 2)
    # Its weights start another model of the same bands as they are.
    again = FineTuneModel("resnet18", 5, weights=str(tmp_path / "m.pt"), image_size=64, bands=BANDS)
    assert torch.equal(again.network.conv1.weight, model.network.conv1.weight)


STEMS = """mobilenet_v2 efficientnet_b0 convnext_tiny vit_b_32 swin_t densenet121 regnet_y_400mf shufflenet_v2_x0_5
squeezenet1_1 mobilenet_v3_small custom_cnn"""


@pytest.mark.parametrize("name", STEMS.split())
def test_every_kind_of_stem_takes_other_bands(name):
    model = FineTuneModel(name, 3, pretrained=False, image_size=64, bands=("vv", "vh")).eval()
    rgb = FineTuneModel(name, 3, pretrained=False, image_size=64).eval()
    gray = torch.randn(1, 1, 64, 64)
    assert model(gray.expand(-1, 2, -1, -1)).shape == (1, 3)
    maps = model.get_feature_extractor()(torch.randn(1, 2, 70, 90))
    assert all(m.isfinite().all() for m in maps.values())
    mean_stem = FineTuneModel(name, 3, pretrained=False, image_size=64, bands=("a", "b", "c")).eval()
    with torch.no_grad():  # three unknown bands see the colours' mean: the same for a gray image
        torch.testing.assert_close(
            mean_stem(gray.expand(-1, 3, -1, -1)), rgb(gray.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4
        )


def test_bands_must_be_named():
    with pytest.raises(ConfigError, match=r"in_channels = 4.*say which bands.*nir"):
        FineTuneModel("resnet18", 3, pretrained=False, in_channels=4)
    with pytest.raises(ConfigError, match=r"in_channels = 2.*name every channel once"):
        FineTuneModel("resnet18", 3, pretrained=False, in_channels=2, bands=BANDS)
    with pytest.raises(ConfigError, match="name every channel once"):
        FineTuneModel("resnet18", 3, pretrained=False, bands=("red", "red", "blue"))
    gray = FineTuneModel("resnet18", 3, pretrained=False, in_channels=1, image_size=32)
    assert gray.preprocessing.bands == ("gray",)


def test_the_transform_takes_bands_as_they_are():
    four = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, bands=BANDS)
    image = torch.randint(256, (4, 40, 50), dtype=torch.uint8)
    ready = four.get_feature_extractor().transforms()(image)
    assert ready.shape == (4, 32, 32)
    torch.testing.assert_close(ready, four.preprocessing.normalise(four.preprocessing.geometry()(image)[None])[0])
    rgb = FineTuneModel("resnet18", 3, pretrained=False, image_size=32).get_feature_extractor()
    assert rgb.transforms()(Image.new("L", (40, 40))).shape == (3, 32, 32)
