import multiprocessing
import os
import signal
import time

import pytest
import torch

from sat_vg.backbone_finetuning.data.loading.augmentation import satellite
from sat_vg.backbone_finetuning.data.loading.loaders import ImageBatches, ImageDataset, validation_loader
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, Part
from sat_vg.backbone_finetuning.data.loading.workers import Workers, why_loading_failed
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing

CPU = torch.device("cpu")


def make_batches(root, num_workers, seed=0, transform=None, timeout=0):
    splits = load_class_folders(root)
    plain = Preprocessing(image_size=24).geometry()
    parts = {
        Part.TRAINING: ImageDataset(splits.train, transform or satellite(24, "bilinear"), seed),
        Part.VALIDATION: ImageDataset(splits.val, plain, seed),
        Part.PLAIN_TRAINING: ImageDataset(splits.train, plain, seed),
    }
    workers = Workers(num_workers, CPU, timeout)
    return ImageBatches(parts, BatchPlan(len(splits.train), 5, seed), in_order_size=4, workers=workers)


def collect(loader):
    return [(batch.images.clone(), batch.targets.clone(), batch.indices.clone()) for batch in loader]


def test_the_same_batches_with_any_number_of_workers_and_from_any_start(class_folders):
    batches = make_batches(class_folders, 0)
    split = batches.parts[Part.TRAINING].split
    expected = collect(batches.training(3, view=3))
    assert len(expected) == len(batches.training(3, view=3)) == 6
    for images, targets, indices in expected:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 24, 24)
        assert targets.argmax(1).tolist() == [split.labels[index] for index in indices]
    for num_workers in (0, 1, 2):
        other = make_batches(class_folders, num_workers)
        for epoch, first in ((0, 0), (3, 0), (3, 4)):  # the same persistent workers serve all of them
            torch.rand(5)
            found = collect(other.training(epoch, epoch, first))
            assert len(found) == 6 - first
            if epoch == 3:
                for mine, theirs in zip(found, expected[first:], strict=True):
                    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_one_set_of_workers_serves_training_and_validation(class_folders):
    batches = make_batches(class_folders, 2)
    children = set()
    for _ in range(2):
        for one_pass in (
            batches.training(0, 0),
            batches.in_order(Part.VALIDATION),
            batches.in_order(Part.PLAIN_TRAINING),
        ):
            collect(one_pass)
            children |= {process.pid for process in multiprocessing.active_children()}
    assert len(children) == 2


def test_augmentation_changes_with_view_and_seed(class_folders):
    dataset = make_batches(class_folders, 0).parts[Part.TRAINING]
    assert torch.equal(dataset[0, 4][0], dataset[0, 4][0])
    assert not torch.equal(dataset[0, 4][0], dataset[1, 4][0])
    other = make_batches(class_folders, 0, seed=1).parts[Part.TRAINING]
    assert not torch.equal(dataset[0, 4][0], other[0, 4][0])


def test_loading_does_not_disturb_the_generator_of_dropout(class_folders):
    batches = make_batches(class_folders, 2)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    next(iter(batches.training(0, 0)))
    assert torch.equal(torch.rand(3), expected)


def test_other_passes_see_every_image_once_in_order(class_folders):
    batches = make_batches(class_folders, 0)
    for part in (Part.VALIDATION, Part.PLAIN_TRAINING):
        found = collect(batches.in_order(part))
        assert torch.cat([indices for _, _, indices in found]).tolist() == list(range(len(batches.parts[part])))
    loader = validation_loader(batches.parts[Part.VALIDATION], 4, Workers(0, CPU))
    assert len(loader) == len(collect(loader)) == -(-len(batches.parts[Part.VALIDATION]) // 4)
    for mine, theirs in zip(collect(loader), collect(batches.in_order(Part.VALIDATION)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


class _Hanging(torch.nn.Module):
    def forward(self, image):
        time.sleep(60)
        return image


class _Dying(torch.nn.Module):
    def forward(self, image):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(50)
@pytest.mark.parametrize(
    ("transform", "timeout", "says"), [(_Hanging(), 1, "for 1 seconds"), (_Dying(), 40, "died (DataLoader worker")]
)
def test_a_worker_that_hangs_or_dies_is_named(class_folders, transform, timeout, says):
    batches = make_batches(class_folders, 1, transform=transform, timeout=timeout)
    with pytest.raises(RuntimeError) as caught:
        next(iter(batches.training(0, 0)))
    assert says in why_loading_failed(caught.value)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no signal masks")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_worker_outlives_a_stop_signal_that_comes_while_it_starts(class_folders, monkeypatch, sent):
    """Schedulers send it to all processes of a job, also to a worker that has not run its first line yet."""
    handlers = torch.utils.data._utils.signal_handling
    set_handlers = handlers._set_worker_signal_handlers

    def set_and_send():
        set_handlers()
        os.kill(os.getpid(), sent)

    monkeypatch.setattr(handlers, "_set_worker_signal_handlers", set_and_send)  # the workers are forked
    split = load_class_folders(class_folders).val
    dataset = ImageDataset(split, Preprocessing(image_size=32).geometry(), seed=0)
    loader = validation_loader(dataset, 4, Workers(2, torch.device("cpu"), timeout=30))
    assert sum(len(batch.indices) for batch in loader) == len(split)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {sent}  # of this process, as before
