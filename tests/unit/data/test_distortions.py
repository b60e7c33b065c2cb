"""What can be added to an augmentation: each does what its name says, by its strength, and from torch's generator."""

import random

import numpy as np
import pytest
import torch

from sat_vg.backbone_finetuning.configs.choices import AUGMENTATION_STEPS
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import parse_augmentation_step
from sat_vg.backbone_finetuning.data.loading.augmentation import PRESETS
from sat_vg.backbone_finetuning.data.loading.distortions import STEPS, affine, line_kernel, warp, with_steps
from sat_vg.backbone_finetuning.data.loading.loaders import ImageDataset
from sat_vg.backbone_finetuning.data.loading.transforms import GaussianNoise
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.utils.errors import ConfigError


def scene(size=48, bands=3):
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (bands, 6, 6), dtype=torch.uint8, generator=generator)
    return blocks.repeat_interleave(size // 6, 1).repeat_interleave(size // 6, 2)


def test_every_name_has_a_step_and_a_strength():
    assert set(STEPS) == set(AUGMENTATION_STEPS)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("bands", [3, 5])
def test_shape_and_type_stay_and_the_change_shows(name, bands):
    step = STEPS[name](AUGMENTATION_STEPS[name][0])
    torch.manual_seed(0)
    for image in (scene(bands=bands), 3000 + 10_000 * torch.rand(bands, 20, 20), scene(16 // 6 * 6 + 6, bands)):
        before = image.clone()
        found = torch.stack([step(image) for _ in range(8)])
        assert torch.equal(image, before), "the image itself is left alone"
        assert found.shape[1:] == image.shape
        assert found.dtype == image.dtype
        assert len({one.numpy().tobytes() for one in found}) > 4
        if image.is_floating_point() and name != "noise":  # no grey and no byte comes in
            assert image.min() - 1 <= found.min()
            assert found.max() <= image.max() + 1


@pytest.mark.parametrize("name", STEPS)
def test_more_strength_changes_more(name):
    usual, largest = AUGMENTATION_STEPS[name]
    changes = []
    for strength in (usual / 8, min(4 * usual, largest)):
        step = STEPS[name](strength)
        torch.manual_seed(1)
        changes.append(sum(float((step(scene()).float() - scene()).abs().mean()) for _ in range(40)) / 40)
    assert changes[1] > 1.3 * changes[0]


@pytest.mark.parametrize("name", STEPS)
def test_the_largest_strength_takes_the_smallest_images(name):
    step = STEPS[name](AUGMENTATION_STEPS[name][1])
    torch.manual_seed(0)
    for _ in range(20):
        assert step(scene(18)[:, :16, :16]).shape == (3, 16, 16)


@pytest.mark.parametrize("name", STEPS)
def test_nothing_but_torchs_generator_counts(name, class_folders):
    split = load_class_folders(class_folders).train
    transform = with_steps(PRESETS["turns"].build(24, "bilinear"), (name,))
    dataset = ImageDataset(split, transform, seed=3)
    keys = [(view, index) for view in range(4) for index in range(0, 27, 5)]
    forwards = {key: dataset[key][0] for key in keys}
    for key in reversed(keys):
        random.seed(str(key))
        np.random.seed(len(str(key)))  # noqa: NPY002 - the very state that must not matter
        assert torch.equal(dataset[key][0], forwards[key])


def test_a_quarter_turn_is_exact():
    image = scene()
    assert torch.equal(warp(image, affine(90)), image.rot90(1, (1, 2)))
    assert torch.equal(warp(image, affine(180)), image.rot90(2, (1, 2)))


def test_a_shift_is_by_a_share_of_the_side_and_mirrors_what_comes_in():
    image = scene(48)
    moved = warp(image, affine(0, right=1 / 4))
    assert torch.equal(moved[:, :, 12:], image[:, :, :36])
    assert torch.equal(moved[:, :, :12], image[:, :, :12].flip(2))


def test_a_scale_enlarges_about_the_middle():
    image = scene(48)
    enlarged = warp(image, affine(0, scale=2)).float()
    middle = torch.nn.functional.interpolate(image[None, :, 12:36, 12:36].float(), 48, mode="bilinear")[0]
    assert (enlarged - middle)[:, 4:-4, 4:-4].abs().max() <= 1


@pytest.mark.parametrize("length", [1, 2, 4.5, 7, 31])
@pytest.mark.parametrize("angle", [0.0, 0.7, 1.57, 3.0])
def test_a_motion_is_a_line_through_the_middle(length, angle):
    kernel = line_kernel(length, angle)
    assert kernel.sum() == pytest.approx(1)
    assert kernel.shape[0] == kernel.shape[1]
    assert kernel.shape[0] % 2 == 1
    middle = kernel.shape[0] // 2
    assert kernel[middle, middle] > 0
    places = kernel.nonzero() - middle
    across = torch.tensor([np.cos(angle), -np.sin(angle)], dtype=torch.float32)
    assert (places.float() @ across).abs().max() <= 0.75


def test_a_flat_image_stays_flat_but_for_the_noise():
    flat = torch.full((4, 32, 32), 77, dtype=torch.uint8)
    torch.manual_seed(0)
    for name in STEPS:
        for _ in range(10):
            changed = STEPS[name](AUGMENTATION_STEPS[name][0])(flat)
            assert torch.equal(changed, flat) == (name != "noise"), name


def test_noise_of_floats_is_a_share_of_each_bands_deviation():
    image = torch.randn(2, 200, 200) * torch.tensor([1.0, 1000.0])[:, None, None]
    noise = GaussianNoise(0.1)(image) - image
    assert noise.std((1, 2)).tolist() == pytest.approx([0.1, 100], rel=0.05)


def test_strengths_show_in_the_key_of_stored_features():
    plain = PRESETS["turns"].build(32, "bilinear")
    assert with_steps(plain, None) is plain
    shown = {repr(with_steps(plain, (step,))) for name in STEPS for step in (name, f"{name}=0.123")}
    assert len(shown) == 2 * len(STEPS)
    assert not any(" at 0x" in text for text in shown)


@pytest.mark.parametrize(
    "text", ["spin", "rotation=181", "rotation=0", "noise=", "noise=nan", "blur", "rotation=30=3"]
)
def test_what_is_no_step_is_refused_with_all_names(text):
    with pytest.raises(
        ConfigError, match=r"augmentation_steps = .*rotation \(up to 180\), .*for example rotation=30"
    ):
        FinetuneConfig(augmentation_steps=(text,))


def test_a_step_has_its_usual_strength_or_the_one_given():
    assert parse_augmentation_step("rotation") == ("rotation", 180)
    assert parse_augmentation_step("gaussian_blur=2.5") == ("gaussian_blur", 2.5)
    config = FinetuneConfig(augmentation_steps=("rotation=30", "noise"))
    assert FinetuneConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"augmentation_steps .*has no effect without augmentation"):
        FinetuneConfig(augmentation_steps=("noise",), use_augmentation=False)
