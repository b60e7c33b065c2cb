"""The presets: the same key gives the same pixels, whoever draws what in between, in any order and process."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sat_vg.backbone_finetuning.configs.choices import AUGMENTATIONS_OF_ANY_BANDS, VIEWS_OF_AUGMENTATION
from sat_vg.backbone_finetuning.data.loading.augmentation import PRESETS, augmentation_of
from sat_vg.backbone_finetuning.data.loading.loaders import ImageBatches, ImageDataset
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, Part
from sat_vg.backbone_finetuning.data.loading.transforms import GaussianNoise, RandomScaledCrop, Sometimes
from sat_vg.backbone_finetuning.data.loading.workers import Workers
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, BandFiles, Preprocessing

ANY_BANDS = [name for name, preset in PRESETS.items() if preset.any_bands]
KEYS = [(view, index) for view in range(6) for index in range(0, 27, 3)]


def scene(size=48):
    """A picture with edges and many colours, on which every operation shows."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 6, 6), dtype=torch.uint8, generator=generator)
    return blocks.repeat_interleave(size // 6, 1).repeat_interleave(size // 6, 2)


def depends_on_the_generator_alone(transform):
    """Whether neither Python's nor NumPy's random numbers are drawn or matter."""
    for seed in range(20):
        found = []
        for other in (1, 2):
            random.seed(other)
            np.random.seed(other)  # noqa: NPY002 - the very state that must not matter
            states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
            torch.manual_seed(seed)
            found.append(transform(scene()))
            if states != (random.getstate(), np.random.get_state()[1].tolist()):  # noqa: NPY002
                return False
        if not torch.equal(*found):
            return False
    return True


def test_the_configuration_knows_which_rows_take_any_bands():
    assert set(AUGMENTATIONS_OF_ANY_BANDS) == set(ANY_BANDS)


@pytest.mark.parametrize("name", ANY_BANDS)
def test_the_configuration_knows_in_how_many_ways_images_are_shown(name):
    corners = torch.tensor([[40, 90], [150, 220]], dtype=torch.uint8)
    image = corners.repeat_interleave(24, 0).repeat_interleave(24, 1).expand(3, 48, 48).contiguous()
    build, seen = PRESETS[name].build(48, "bilinear"), set()
    for seed in range(120):
        torch.manual_seed(seed)
        shown = build(image)[0]
        seen.add(tuple(torch.stack([shown[y, x] for y in (2, -3) for x in (2, -3)]).float().argsort().tolist()))
    assert len(seen) == VIEWS_OF_AUGMENTATION[name]


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_but_torchs_generator_is_drawn_from(name):
    assert depends_on_the_generator_alone(PRESETS[name].build(32, "bilinear"))


def test_and_what_draws_elsewhere_is_caught():
    class Elsewhere(nn.Module):
        def __init__(self, draw):
            super().__init__()
            self.draw = draw

        def forward(self, image):
            return image.roll(self.draw(), -1)

    draws = [lambda: random.randrange(40), lambda: int(np.random.randint(40)), lambda: int(torch.randint(40, ()))]  # noqa: NPY002
    whole = [nn.Sequential(PRESETS["basic"].build(32, "bilinear"), Elsewhere(draw)) for draw in draws]
    assert list(map(depends_on_the_generator_alone, whole)) == [False, False, True]


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_key_gives_the_same_pixels_in_any_order_and_process(name, class_folders):
    split = load_class_folders(class_folders).train
    dataset = ImageDataset(split, PRESETS[name].build(24, "bilinear"), seed=3)
    forwards = {key: dataset[key][0] for key in KEYS}
    for key in reversed(KEYS):
        random.seed(str(key))
        assert torch.equal(dataset[key][0], forwards[key]), key
    views = [torch.stack([forwards[view, index] for _, index in KEYS[:9]]) for view in (0, 1)]
    assert not torch.equal(*views)  # each view is another one
    # Two processes, each with generators of its own that the loader seeds.
    parts = {Part.TRAINING: dataset, Part.VALIDATION: dataset}
    batches = ImageBatches(parts, BatchPlan(len(split), 5, 0), 4, Workers(2, torch.device("cpu")))
    for batch in batches.in_order(Part.TRAINING, view=4):
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            assert torch.equal(image, dataset[4, index][0])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("size", "interpolation"), [(16, "bilinear"), (33, "bicubic"), (64, "bilinear")])
def test_bytes_of_the_size_that_differ_from_image_to_image(name, size, interpolation):
    transform = PRESETS[name].build(size, interpolation)
    torch.manual_seed(0)
    images = torch.stack([transform(scene(height)) for height in (12, 48, 96) for _ in range(8)])
    assert images.shape == (24, 3, size, size)
    assert images.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in images}) > 12


def test_turns_leave_every_pixel_what_it_was():
    plain, transform = Preprocessing(image_size=48).geometry()(scene(96)), PRESETS["turns"].build(48, "bilinear")
    torch.manual_seed(0)
    seen = {transform(scene(96)).numpy().tobytes() for _ in range(200)}
    turned = [image.rot90(times, (1, 2)) for image in (plain, plain.flip(2)) for times in range(4)]
    assert seen == {image.contiguous().numpy().tobytes() for image in turned}


def test_satellite_is_what_it_was_before_there_were_names():
    """Golden losses and what is kept of frozen stages depend on it; the key holds this text."""
    assert repr(augmentation_of("satellite", Preprocessing(image_size=224))) == (
        "Sequential(\n"
        "  (0): RandomScaledCrop(size=224, interpolation=bilinear, scale=(0.5, 1.0), ratio=1.3333)\n"
        "  (1): RandomColours(strength=0.2)\n"
        "  (2): RandomQuarterTurn()\n"
        ")"
    )


def test_no_two_look_alike_in_the_key_of_stored_features():
    plain = Preprocessing(image_size=32).geometry()
    shown = [repr(plain)] + [
        repr(preset.build(size, interpolation))
        for preset in PRESETS.values()
        for size in (32, 64)
        for interpolation in ("bilinear", "bicubic")
    ]
    assert len(set(shown)) == len(shown) == 1 + 4 * len(PRESETS)
    assert not any(" at 0x" in text for text in shown)  # an address would make every run's key another one
    assert repr(Sometimes(0.1, GaussianNoise(0.1))) != repr(Sometimes(0.2, GaussianNoise(0.1)))
    assert repr(Sometimes(0.1, GaussianNoise(0.1))) != repr(Sometimes(0.1, GaussianNoise(0.2)))


def test_every_part_of_advanced_happens_sometimes_and_shows():
    transform = PRESETS["advanced"].build(48, "bilinear")
    parts = [part for part in transform if isinstance(part, Sometimes)]
    assert len(parts) == 4
    torch.manual_seed(0)
    for part in parts:
        done = sum(not torch.equal(part(scene()), scene()) for _ in range(400))
        deviation = (400 * part.probability * (1 - part.probability)) ** 0.5
        assert abs(done - 400 * part.probability) < 4 * deviation, part


def test_noise_is_of_the_size_that_it_says_and_stays_within_bytes():
    torch.manual_seed(0)
    grey = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    noisy = GaussianNoise(0.04)(grey).float()
    assert noisy.mean().item() == pytest.approx(128, abs=0.5)
    assert noisy.std().item() == pytest.approx(0.04 * 255, rel=0.05)
    assert (noisy[0] - noisy[1]).std() > 5  # every band by itself
    black, white = (GaussianNoise(0.5)(torch.full((3, 64, 64), value, dtype=torch.uint8)) for value in (0, 255))
    assert black.median() == 0
    assert white.median() == 255
    assert black.max() > 200
    assert white.min() < 60


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "turns"])
def test_the_crops_keep_the_share_that_is_asked_for(name):
    seen = re.search(r"scale=\(([\d.]+), 1.0\)", repr(augmentation_of(name, Preprocessing(image_size=32), 0.13)))
    assert seen is not None
    assert seen[1] == "0.13"  # which is part of the key of stored features, too
    ramp = torch.arange(64.0).expand(3, 64, 64).contiguous().to(torch.uint8)
    crop = next(
        module
        for module in augmentation_of(name, Preprocessing(image_size=64), 0.01).modules()
        if isinstance(module, RandomScaledCrop)
    )
    torch.manual_seed(0)
    widths = [int(part.max()) - int(part.min()) + 1 for part in (crop(ramp) for _ in range(300))]
    assert min(widths) < 16  # of 64: a share of 0.5 would leave 39 of them or more
    assert max(widths) == 64


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ANY_BANDS])
def test_what_needs_red_green_and_blue_says_so(name):
    four = Preprocessing(image_size=32, bands=(*RGB, "nir"), mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(
        ConfigError,
        match=rf"augmentation = '{name}'.*\(red, green, blue, nir\); use {', '.join(ANY_BANDS)} or none",
    ):
        augmentation_of(name, four)
    with pytest.raises(ConfigError, match=r"\(blue, green, red\)"):
        augmentation_of(name, replace(Preprocessing(image_size=32), bands=RGB[::-1]))
    files = BandFiles((4, 3, 2), "uint16", 13)
    with pytest.raises(ConfigError, match="other bands or types"):
        augmentation_of(name, replace(Preprocessing(image_size=32), files=files))
    augmentation_of(name, Preprocessing(image_size=32))


@pytest.mark.parametrize("name", ANY_BANDS)
def test_the_others_take_the_values_of_any_bands(name):
    bands = ("red", "green", "blue", "nir")
    files = BandFiles((4, 3, 2, 8), "uint16", 13)
    four = Preprocessing(image_size=32, bands=bands, mean=(0.5,) * 4, std=(0.5,) * 4, scale=1.0, files=files)
    changed = augmentation_of(name, four)(10_000 * torch.rand(4, 40, 40))
    assert changed.shape == (4, 32, 32)
    assert changed.dtype == torch.float32
    assert changed.max() > 5000
