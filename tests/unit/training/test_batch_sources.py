"""Stored features against the whole model: the same numbers, to the bit where nothing is folded or augmented."""

from dataclasses import replace

import pytest
import torch

from sat_vg.backbone_finetuning.data.loading.augmentation import satellite
from sat_vg.backbone_finetuning.data.loading.loaders import ImageBatches, ImageDataset
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, Part
from sat_vg.backbone_finetuning.data.loading.workers import Workers
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.batch_sources import BatchSources, FeatureSource, ImageSource
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.validation import evaluate
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.stop_signals import StopRequested

CPU = torch.device("cpu")
NEVER = lambda: False  # noqa: E731


def make_sources(
    root, folder, trained, num_views=2, dtype=torch.float32, backbone="resnet18", max_bytes=2**30, seed=0
):
    torch.manual_seed(0)
    splits = load_class_folders(root)
    model = FineTuneModel(backbone, 3, pretrained=False, image_size=32)
    precision = Precision(CPU, dtype)
    precision.place_model(model)
    model.train()
    for module in model.network.modules():  # statistics that are not those of a fresh network
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    model.set_trainable(model.stage_names[len(model.stage_names) - trained :])
    plain = model.preprocessing.geometry()
    transform = satellite(32, "bilinear") if num_views != 1 else plain
    parts = {
        Part.TRAINING: ImageDataset(splits.train, transform, seed),
        Part.VALIDATION: ImageDataset(splits.val, plain, seed),
        Part.PLAIN_TRAINING: ImageDataset(splits.train, plain, seed),
    }
    batches = ImageBatches(parts, BatchPlan(len(splits.train), 5, seed), 4, Workers(0, CPU))
    return BatchSources(
        model, precision, batches, num_views, BoundedCache(folder, max_bytes), f"images of seed {seed}"
    )


def outputs(sources, source, epoch):
    found = []
    for batch in source.training(epoch, 1):
        torch.manual_seed(epoch)  # Swin's trained stages drop whole paths
        with sources.precision.autocast():
            (_, logits), *_ = sources.model.training_outputs(source.values(batch), source.start)
        found.append((logits, batch.targets, batch.indices))
    return found


@pytest.mark.parametrize(
    ("backbone", "trained", "num_views", "dtype"),
    [
        ("resnet18", 0, 1, torch.float32),
        ("resnet18", 1, 1, torch.float32),
        ("resnet18", 3, 2, torch.float32),
        ("resnet18", 2, 2, torch.bfloat16),
        ("resnet18", 0, 1, torch.bfloat16),
        ("vit_b_32", 2, 1, torch.float32),
        pytest.param("swin_t", 2, 2, torch.float32, marks=pytest.mark.slow),
        pytest.param("densenet121", 1, 1, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_with_and_without_the_cache_to_the_bit(class_folders, tmp_path, backbone, trained, num_views, dtype):
    sources = make_sources(class_folders, tmp_path, trained, num_views, dtype, backbone)
    sources.model.fold_frozen(dtype)
    phase = Phase("some", 5, sources.model.trainable_stages)
    (stored, validation), images = sources.for_phase(phase, NEVER), sources.image_source()
    assert validation is stored
    assert isinstance(stored, FeatureSource)
    assert stored.start == len(sources.model.stages) - trained + (trained == 0)
    for epoch in (1, 4):
        for mine, theirs in zip(outputs(sources, stored, epoch), outputs(sources, images, epoch), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    with_it = evaluate(sources.model, stored.validation(), sources.precision, None, stored)
    without = evaluate(sources.model, images.validation(), sources.precision)
    assert with_it.loss == without.loss
    assert torch.equal(with_it.confusion, without.confusion)


def test_with_several_classes_an_image_too(class_folders, tmp_path):
    sources = make_sources(class_folders, tmp_path, 0, 1)
    sources.model.task = "multi_label"
    for part in sources.batches.parts.values():  # the split's labels become combinations of classes
        part.split = replace(part.split, label_sets=((), (0, 2), (0, 1, 2)))
    sources = replace(sources, batches=ImageBatches(sources.batches.parts, sources.batches.plan, 4, Workers(0, CPU)))
    stored, images = sources.for_phase(Phase("some", 5, ()), NEVER).training, sources.image_source()
    assert isinstance(stored, FeatureSource)
    for mine, theirs in zip(outputs(sources, stored, 1), outputs(sources, images, 1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert {tuple(row) for row in mine[1].tolist()} <= {(0, 0, 0), (1, 0, 1), (1, 1, 1)}
    with_it = evaluate(sources.model, stored.validation(), sources.precision, None, stored)
    without = evaluate(sources.model, images.validation(), sources.precision)
    assert with_it.numbers() == without.numbers()
    assert with_it.counts[2].tolist() == [6, 3, 6]


def test_views_take_turns(class_folders, tmp_path):
    sources = make_sources(class_folders, tmp_path, 1, num_views=2)
    source = sources.for_phase(Phase("some", 5, sources.model.trainable_stages), NEVER).training
    stored = source.stored[Part.TRAINING]
    places = torch.arange(4)
    assert not torch.equal(stored.get(0, places), stored.get(1, places))
    first, third = (next(iter(source.training(epoch, 0))) for epoch in (0, 2))
    assert torch.equal(first.images, stored.get(0, first.indices))
    assert torch.equal(third.images, stored.get(0, third.indices))
    assert not torch.equal(first.indices, third.indices)  # the order is each epoch's own


def test_found_again_and_only_while_all_is_the_same(class_folders, tmp_path, monkeypatch):
    def computed(sources):
        calls = []
        run = BatchSources._run
        monkeypatch.setattr(
            BatchSources, "_run", lambda self, batch, start: calls.append(1) or run(self, batch, start)
        )
        source = sources.for_phase(Phase("some", 5, sources.model.trainable_stages), NEVER).training
        monkeypatch.setattr(BatchSources, "_run", run)
        assert isinstance(source, FeatureSource)
        return len(calls) > 1  # one is for the shape

    assert computed(make_sources(class_folders, tmp_path, 1))
    assert not computed(make_sources(class_folders, tmp_path, 1))
    assert computed(make_sources(class_folders, tmp_path, 2))
    assert computed(make_sources(class_folders, tmp_path, 1, num_views=3))
    assert computed(make_sources(class_folders, tmp_path, 1, seed=1))
    with monkeypatch.context() as other:
        other.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
        assert computed(make_sources(class_folders, tmp_path, 1))
    assert not computed(make_sources(class_folders, tmp_path, 1))
    other_sizes = make_sources(class_folders, tmp_path, 1)
    other_sizes.batches.in_order_size = 3
    assert computed(other_sizes)
    altered = make_sources(class_folders, tmp_path, 1)
    with torch.no_grad():
        next(iter(altered.model.network.parameters()))[0, 0, 0, 0] += 1e-3
    assert computed(altered)
    trained_only = make_sources(class_folders, tmp_path, 1)
    with torch.no_grad():
        trained_only.model.network.layer4[0].conv1.weight[0, 0, 0, 0] += 1  # behind the frozen stages
    assert not computed(trained_only)
    for file in tmp_path.rglob("features.bin"):
        file.write_bytes(file.read_bytes()[:-1])
    assert computed(make_sources(class_folders, tmp_path, 1))


@pytest.mark.parametrize(("dtype", "is_other"), [(torch.bfloat16, True), (torch.float32, False)])
def test_features_of_folded_stages_are_not_taken_for_those_of_others(class_folders, tmp_path, dtype, is_other):
    sources = make_sources(class_folders, tmp_path, 1, dtype=dtype)
    phase = Phase("some", 5, sources.model.trainable_stages)
    found = []
    for fold in (False, True, False):
        sources.model.fold_frozen(dtype if fold else torch.float32)
        stored = sources.for_phase(phase, NEVER).validation.stored[Part.VALIDATION]
        found.append(stored.get(0, torch.arange(3)))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[1]) is not is_other
    assert len(list(tmp_path.rglob("features.bin"))) == (4 if is_other else 2)


def test_nothing_is_stored_where_nothing_would_be_gained_or_it_would_not_fit(class_folders, tmp_path, capsys):
    sources = make_sources(class_folders, tmp_path, 1, num_views=2)
    trained = sources.model.trainable_stages
    assert sources.feature_spec(Phase("some", 3, trained)).num_views == {Part.TRAINING: 2, Part.VALIDATION: 1}
    assert sources.feature_spec(Phase("some", 2, trained)).num_views == {
        Part.VALIDATION: 1
    }  # two views in two epochs
    assert sources.feature_spec(Phase("some", 1, trained)) == ""
    assert sources.feature_spec(Phase("some", 1, (), method="exact_head")) == ""
    sources.model.set_trainable(sources.model.stage_names)
    assert sources.feature_spec(Phase("full", 9, sources.model.stage_names)) == ""
    assert isinstance(sources.for_phase(Phase("full", 9, sources.model.stage_names), NEVER).validation, ImageSource)
    assert "cached_views" in make_sources(class_folders, tmp_path, 1, num_views=0).describe(Phase("some", 9, trained))
    small = make_sources(class_folders, tmp_path, 1, max_bytes=1000)
    assert "--cache_gib allows" in small.describe(Phase("some", 9, trained))
    assert all(isinstance(source, ImageSource) for source in small.for_phase(Phase("some", 9, trained), NEVER))
    assert small.image_source().num_views == 2  # what is trained on does not depend on the disk


@pytest.mark.parametrize(("num_views", "mixes_images"), [(0, False), (1, True), (9, False)])
def test_of_validation_images_alone_to_the_bit(class_folders, tmp_path, num_views, mixes_images):
    sources = make_sources(class_folders, tmp_path, 1, num_views)
    sources = replace(sources, mixes_images=mixes_images)
    phase = Phase("some", 9, sources.model.trainable_stages)
    training, validation = sources.for_phase(phase, NEVER)
    assert isinstance(training, ImageSource)
    assert validation.start == len(sources.model.stages) - 1
    assert "frozen stages run once on the validation images, not 9 times: " in sources.describe(phase)
    assert ("cached_views" in sources.describe(phase)) is (num_views == 0)  # where that can be set
    images = sources.image_source()
    with_it = evaluate(sources.model, validation.validation(), sources.precision, None, validation)
    without = evaluate(sources.model, images.validation(), sources.precision)
    assert with_it.loss == without.loss
    assert torch.equal(with_it.confusion, without.confusion)


def test_where_the_training_images_do_not_fit_the_validation_images_may(class_folders, tmp_path):
    sources = make_sources(class_folders, tmp_path, 1, 1)
    phase = Phase("some", 5, sources.model.trainable_stages)
    whole = sources.feature_spec(phase)
    sources = make_sources(class_folders, tmp_path, 1, 1, max_bytes=whole.num_bytes - 1)
    assert sources.feature_spec(phase).num_views == {Part.VALIDATION: 1}
    assert "--cache_gib allows" in sources.describe(phase)


def test_where_the_system_cannot_reserve_room(class_folders, tmp_path, monkeypatch):
    monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    sources = make_sources(class_folders, tmp_path, 1, 1)
    source, _ = sources.for_phase(Phase("some", 5, sources.model.trainable_stages), NEVER)
    assert isinstance(source, FeatureSource)
    assert outputs(sources, source, 0)


def test_a_stop_on_the_way_leaves_nothing(class_folders, tmp_path):
    sources = make_sources(class_folders, tmp_path, 1)
    with pytest.raises(StopRequested):
        sources.for_phase(Phase("some", 5, sources.model.trainable_stages), lambda: True)
    assert not list(tmp_path.rglob("features.bin"))
