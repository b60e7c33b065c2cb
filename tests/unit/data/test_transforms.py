import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from sat_vg.backbone_finetuning.data.loading.augmentation import satellite
from sat_vg.backbone_finetuning.data.loading.transforms import (
    RandomColours,
    RandomQuarterTurn,
    RandomScaledCrop,
)


def smooth_image(height=40, width=56, low=60, high=190):
    ramp = torch.linspace(low, high, height * width).view(height, width)
    return torch.stack([ramp, ramp.flip(0), ramp.flip(1)]).round().to(torch.uint8)


def test_all_eight_flips_and_turns_happen():
    image = torch.arange(9).reshape(1, 3, 3)
    turn = RandomQuarterTurn()
    torch.manual_seed(0)
    seen = {tuple(turn(image).flatten().tolist()) for _ in range(200)}
    expected = {
        tuple(torch.rot90(side, turns, (-2, -1)).flatten().tolist())
        for side in (image, image.flip(-1))
        for turns in range(4)
    }
    assert seen == expected
    assert len(expected) == 8


def test_colours_are_those_of_torchvision_where_nothing_is_cut():
    image = smooth_image()
    change = RandomColours(0.2)
    for seed in range(20):
        torch.manual_seed(seed)
        found = change(image)
        torch.manual_seed(seed)
        brightness, contrast, saturation = (torch.rand(3) * 0.4 + 0.8).tolist()
        expected = reference.adjust_brightness(image.float() / 255, brightness)
        expected = reference.adjust_contrast(expected, contrast)
        expected = reference.adjust_saturation(expected, saturation)
        assert found.dtype == torch.uint8
        assert (found.float() - 255 * expected).abs().max() < 0.75
        assert (found.float() - image.float()).abs().max() > 0.75


def test_colours_stay_within_bytes_and_any_layout_gives_the_same():
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    image[:, :8] = 255
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for seed in range(5):
        torch.manual_seed(seed)
        one = RandomColours(0.9)(image)
        torch.manual_seed(seed)
        assert torch.equal(one, RandomColours(0.9)(channels_last))
    assert torch.equal(RandomColours(0.0)(image), image)


@pytest.mark.parametrize(("height", "width"), [(40, 56), (300, 20), (1, 1), (32, 32)])
def test_crops_are_within_the_image_and_of_the_size(height, width):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows % 256, columns % 256, rows * 0]).to(torch.uint8)
    crop = RandomScaledCrop(24, "bilinear")
    torch.manual_seed(0)
    for _ in range(30):
        part = crop(image)
        assert part.shape == (3, 24, 24)
        assert part[0].max() <= min(height - 1, 255)
        assert part[1].max() <= width - 1


def test_crops_cover_the_asked_for_share_of_the_area():
    image = smooth_image(400, 400, 0, 255)
    position = torch.arange(400).div(400 / 250).round().to(torch.uint8)
    image[0], image[1] = position[:, None], position[None]
    crop = RandomScaledCrop(64, "bilinear", scale=(0.5, 1.0))
    torch.manual_seed(0)
    shares = []
    for _ in range(200):
        part = crop(image).float()
        height, width = (part[channel].max() - part[channel].min() for channel in (0, 1))
        shares.append(float(height * width) / 250**2)
    assert 0.42 < min(shares) < 0.56
    assert max(shares) > 0.9
    assert 0.65 < sum(shares) / len(shares) < 0.8


def test_the_whole_chain_is_a_function_of_the_generator():
    transform = satellite(24, "bilinear")
    torch.manual_seed(3)
    one = transform(smooth_image())
    torch.manual_seed(3)
    two = transform(smooth_image())
    assert torch.equal(one, two)
    assert not torch.equal(one, transform(smooth_image()))
    assert one.shape == (3, 24, 24)
    assert one.dtype == torch.uint8
