"""What the configuration says of images, orders and sizes, put together."""

import re

import pytest
import torch

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.readable import require_readable
from sat_vg.backbone_finetuning.data.loading.sampling import Part
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.sources.splits import Split, load_class_folders
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.assembly import batch_plan, batch_sources_of, image_batches
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.run import choose_phases
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.ranks import SingleProcess

CPU = Precision(torch.device("cpu"), torch.float32)


@pytest.fixture
def sources(class_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    images = require_readable(load_class_folders(class_folders), "error", max_bad_fraction=0.0)
    model = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, freeze_layers=2)

    def make(**settings):
        config = FinetuneConfig(image_size=32, num_workers=0, **settings)
        batches = image_batches(config, images, model, CPU, decode_rgb, SingleProcess())
        return batch_sources_of(config, images, model, CPU, batches, SingleProcess())

    return make


def test_stored_features_go_by_the_augmentation(sources):
    named = {
        name: sources(augmentation=name)
        for name in ("none", "basic", "satellite", "turns", "randaugment", "advanced")
    }
    keys = {name: one.images_key for name, one in named.items()}
    assert len(set(keys.values())) == len(keys)
    assert keys["satellite"] == sources().images_key
    assert keys["none"] == sources(use_augmentation=False).images_key
    assert [one.num_views for one in named.values()] == [1, 0, 0, 0, 0, 0]
    plain = repr(named["none"].batches.parts[Part.VALIDATION].transform)
    for name, one in named.items():
        assert repr(one.batches.parts[Part.VALIDATION].transform) == plain
        assert repr(one.batches.parts[Part.PLAIN_TRAINING].transform) == plain
        assert (repr(one.batches.parts[Part.TRAINING].transform) == plain) == (name == "none")


def test_nothing_is_stored_of_training_images_that_change_with_the_step(sources):
    phase = Phase("some", 5, sources().model.trainable_stages)
    both = {Part.TRAINING: 1, Part.VALIDATION: 1}
    assert sources(augmentation="none").feature_spec(phase).num_views == both
    for changes in ({"train_image_size": (24, 32)}, {"mixup_alpha": 0.2}, {"cutmix_alpha": 0.2}):
        assert sources(augmentation="none", **changes).feature_spec(phase).num_views == {Part.VALIDATION: 1}
    assert sources(augmentation="none", cache="off").feature_spec(phase) == ""


def test_classes_cannot_take_turns_where_an_image_has_several():
    several = Split("train", ("a", "b", "c"), (0, 1, 2), ("x", "y"), ((0,), (0, 1), ()))
    with pytest.raises(ConfigError, match=r"sampler = 'class_balanced'.*several of them or none; use weighted"):
        batch_plan(FinetuneConfig(sampler="class_balanced"), several, SingleProcess())
    for sampler in ("uniform", "weighted"):
        assert sum(map(len, batch_plan(FinetuneConfig(sampler=sampler), several, SingleProcess()).batches(0))) == 3


def test_a_batch_that_is_too_small_for_so_many_processes_is_refused():
    class OneOfTwo(SingleProcess):
        count = 2

    split = Split("train", tuple("abcdefgh"), (0, 1) * 4, ("x", "y"))
    assert batch_plan(FinetuneConfig(batch_size=4), split, OneOfTwo()).fewest_images == 2
    with pytest.raises(ConfigError, match="raise batch_size to 4 or more, or start fewer processes"):
        batch_plan(FinetuneConfig(batch_size=2), split, OneOfTwo())


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({"strategy": "linear_probe"}, ["0.00"]),  # the auxiliary heads behind frozen stages are frozen too
        ({"strategy": "last_layers", "last_layers": 2}, ["3.13"]),
        ({"strategy": "lp_ft", "wise_ft": True}, ["0.00", "9.94", "9.94"]),
        ({"freeze_early_layers": True, "unfreeze_layers": ("inception5",)}, ["2.33"]),
    ],
)
def test_the_phases_tell_the_parameters_that_get_gradients(changes, millions, capsys):
    config = FinetuneConfig(backbone="googlenet", pretrained=False, image_size=64, num_epochs=5, **changes)
    model = FineTuneModel("googlenet", 3, pretrained=False, image_size=64)
    model.set_trainable(config.unfreeze_layers or ())
    phases = choose_phases(config, model)
    assert re.findall(r"(\d+\.\d\d) M", capsys.readouterr().out) == millions
    trained = []
    for phase in phases:
        model.set_trainable(phase.trainable_stages)
        trained.append(f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.2f}")
    assert trained == millions
