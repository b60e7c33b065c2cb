import os
import signal
import time

import pytest
import torch

from sat_vg.backbone_finetuning.data.loaders import (
    ImageDataset,
    training_loader,
    validation_loader,
    why_loading_failed,
)
from sat_vg.backbone_finetuning.data.sampling import BatchPlan, EpochBatches
from sat_vg.backbone_finetuning.data.sources import load_class_folders
from sat_vg.backbone_finetuning.data.transforms import RandomQuarterTurn, training_transform
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing

CPU = torch.device("cpu")


def make_loader(root, num_workers, seed=0):
    split = load_class_folders(root).train
    batches = EpochBatches(BatchPlan(len(split), 5, seed))
    dataset = ImageDataset(split, training_transform(24, "bilinear"), seed)
    return batches, training_loader(dataset, batches, num_workers, CPU), split


def collect(loader):
    return [(batch.images.clone(), batch.targets.clone(), batch.indices.clone()) for batch in loader]


def test_the_same_batches_with_any_number_of_workers_and_from_any_start(class_folders):
    batches, loader, split = make_loader(class_folders, 0)
    batches.start_at(3)
    expected = collect(loader)
    assert len(expected) == 6
    for images, targets, indices in expected:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 24, 24)
        assert targets.argmax(1).tolist() == [split.labels[index] for index in indices]
    for num_workers in (0, 1, 2):
        other_batches, other, _ = make_loader(class_folders, num_workers)
        for epoch, first in ((0, 0), (3, 0), (3, 4)):  # the same persistent workers serve all of them
            torch.rand(5)
            other_batches.start_at(epoch, first)
            found = collect(other)
            if epoch == 3:
                for mine, theirs in zip(found, expected[first:], strict=True):
                    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_augmentation_changes_with_epoch_and_seed(class_folders):
    _, loader, _ = make_loader(class_folders, 0)
    dataset = loader.dataset
    assert torch.equal(dataset[0, 4][0], dataset[0, 4][0])
    assert not torch.equal(dataset[0, 4][0], dataset[1, 4][0])
    assert not torch.equal(dataset[0, 4][0], make_loader(class_folders, 0, seed=1)[1].dataset[0, 4][0])


def test_loading_does_not_disturb_the_generator_of_dropout(class_folders):
    batches, loader, _ = make_loader(class_folders, 2)
    batches.start_at(0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    iterator = iter(loader)
    next(iterator)
    assert torch.equal(torch.rand(3), expected)


def test_validation_sees_every_image_once_in_order(class_folders):
    split = load_class_folders(class_folders).val
    geometry = Preprocessing(image_size=24).geometry()
    loader = validation_loader(ImageDataset(split, geometry, 0), 4, 0, CPU)
    assert torch.cat([batch.indices for batch in loader]).tolist() == list(range(len(split)))


def test_all_eight_flips_and_turns_happen():
    image = torch.arange(9).reshape(1, 3, 3)
    turn = RandomQuarterTurn()
    torch.manual_seed(0)
    seen = {tuple(turn(image).flatten().tolist()) for _ in range(200)}
    assert len(seen) == 8


class _Hanging(torch.nn.Module):
    def forward(self, image):
        time.sleep(60)
        return image


class _Dying(torch.nn.Module):
    def forward(self, image):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(50)
@pytest.mark.parametrize(
    ("transform", "says"), [(_Hanging(), "for 1 seconds"), (_Dying(), "died (DataLoader worker")]
)
def test_a_worker_that_hangs_or_dies_is_named(class_folders, transform, says):
    split = load_class_folders(class_folders).train
    batches = EpochBatches(BatchPlan(len(split), 5, 0))
    loader = training_loader(ImageDataset(split, transform, 0), batches, 1, CPU, timeout=1)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    assert says in why_loading_failed(caught.value)
