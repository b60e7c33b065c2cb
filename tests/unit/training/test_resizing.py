"""Training at growing sizes: which size when, what the model sees, and what it cannot take."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_equivalences import make_training, take_steps
from torch.nn import functional

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.replicas import SingleReplica
from sat_vg.backbone_finetuning.training.resizing import GrowingImages, keep_size, require_sizes
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import Precision

CPU = Precision(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("sizes", "num_epochs"), [((96, 128), 6), ((64, 96, 128), 7), ((24, 32), 3), ((48,), 4)])
def test_sizes_ascend_in_equal_shares(sizes, num_epochs):
    growing = GrowingImages(sizes, num_epochs, steps_per_epoch=5)
    found = [growing.size_in(epoch) for epoch in range(num_epochs)]
    assert found == sorted(found)
    counts = Counter(found)
    assert set(counts) == set(sizes)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert growing.size_in(num_epochs + 3) == sizes[-1]  # a strategy may have epochs beside those of the config


def test_the_size_is_a_function_of_the_epoch_that_the_step_is_in():
    growing = GrowingImages((8, 16), num_epochs=4, steps_per_epoch=3)
    images = torch.rand(2, 3, 16, 16)
    sizes = [growing(images, step).shape[-1] for step in range(12)]
    assert sizes == [8] * 6 + [16] * 6
    assert torch.equal(growing(images, 2), growing(images, 2))
    assert growing(images, 6) is images
    assert keep_size(images, 0) is images
    assert growing.description == "training images: 8 pixels for 2 epochs, then 16 pixels for 2 epochs"
    assert (
        GrowingImages((8, 16), 2, 3).description
        == "training images: 8 pixels for 1 epoch, then 16 pixels for 1 epoch"
    )


def test_images_become_smaller_as_torch_makes_them_and_keep_their_memory_format():
    images = torch.rand(2, 5, 32, 32).contiguous(memory_format=torch.channels_last)
    small = GrowingImages((20, 32), 2, 1)(images, 0)
    expected = functional.interpolate(images, (20, 20), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, expected)
    assert small.is_contiguous(memory_format=torch.channels_last)
    stripes = torch.zeros(1, 1, 32, 32)
    stripes[..., ::2] = 1
    middle = GrowingImages((16, 32), 2, 1)(stripes, 0)[..., 2:-2]
    assert (middle - 0.5).abs().max() < 0.2  # without antialiasing stripes could stay stripes


def test_a_step_shows_the_model_its_size():
    training, seen = make_training(), []

    def outputs(values, start):
        seen.append(tuple(values.shape))
        return training.model.training_outputs(values, start)

    take_steps(replace(training, resizing=GrowingImages((24, 32), 2, 2), replica=SingleReplica(outputs)), count=4)
    assert seen == [(8, 3, 24, 24)] * 2 + [(8, 3, 32, 32)] * 2


def test_what_a_network_cannot_take_is_said_at_the_start():
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=64).train()
    model.network.layer1.eval()  # a part in another mode
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    modes = [module.training for module in model.modules()]
    require_sizes(model, (32, 50, 64), CPU)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())

    vit = FineTuneModel("vit_b_32", 3, pretrained=False, image_size=64)
    require_sizes(vit, (32, 64), CPU)
    with pytest.raises(
        ConfigError, match=r"train_image_size = \[32, 48\]: vit_b_32.* 64 pixels, cannot take 48 .*patch"
    ):
        require_sizes(vit, (32, 48), CPU)
    small = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=64)
    with pytest.raises(ConfigError, match=r"squeezenet1_1.*cannot take 16 pixels \(it needs 21 or more\)"):
        require_sizes(small, (16, 64), CPU)


def test_networks_with_one_size_only():
    pytest.importorskip("timm")
    fixed = FineTuneModel("timm:mixer_s32_224", 3, pretrained=False, image_size=64)
    with pytest.raises(ConfigError, match=r"timm:mixer_s32_224, built for images of 64 pixels, cannot take 32"):
        require_sizes(fixed, (32, 64), CPU)


SOUND = {"image_size": 64, "num_epochs": 4}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"train_image_size": (64, 96)}, "96 is above image_size = 64"),
        ({"train_image_size": (32, 40, 48, 56, 64)}, "5 sizes need as many epochs, but num_epochs = 4"),
        ({"train_image_size": (32, 64), "cached_views": 2, "strategy": "last_layers"}, "images of one size"),
        (
            {"train_image_size": (32, 64), "strategy": "linear_probe", "probe_solver": "exact"},
            "set probe_solver to sgd",
        ),
        ({"train_image_size": ()}, "a list of different whole numbers, 16 to 4096"),
        ({"train_image_size": (32, 32)}, "different whole numbers"),
        ({"train_image_size": (8, 32)}, "16 to 4096"),
        ({"train_image_size": 32}, "a list"),
        ({"train_image_size": ("32",)}, r"for example \[96, 128\]"),
        ({"train_image_size": ([32],)}, "a list"),
    ],
)
def test_settings_that_do_not_fit_together(values, part):
    with pytest.raises(ConfigError, match=part):
        FinetuneConfig(**SOUND, **values)


def test_sound_settings():
    assert FinetuneConfig(**SOUND, train_image_size=[64, 32]).train_image_size == (64, 32)
    FinetuneConfig(**SOUND, train_image_size=(32,), strategy="linear_probe", probe_solver="sgd")
    FinetuneConfig(**SOUND, train_image_size=(32, 64), strategy="lp_ft")
