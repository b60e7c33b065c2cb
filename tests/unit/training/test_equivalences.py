"""Settings that must come to the same: to the bit where nothing is added up in another order, else to rounding."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.data.loading.mixing import Mixing
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.batch_sources import ImageSource
from sat_vg.backbone_finetuning.training.ema import MovingAverage, NullAverage
from sat_vg.backbone_finetuning.training.loop import train_step
from sat_vg.backbone_finetuning.training.losses import BinaryCrossEntropy, CrossEntropy
from sat_vg.backbone_finetuning.training.micro_batches import MicroBatches
from sat_vg.backbone_finetuning.training.optim import Schedule, build_optimizer
from sat_vg.backbone_finetuning.training.replicas import SingleReplica
from sat_vg.backbone_finetuning.training.resizing import GrowingImages
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.utils.precision import Precision

CLASSES = 4


def a_model(dropout=0.0):
    return FineTuneModel("shufflenet_v2_x0_5", CLASSES, pretrained=False, image_size=32, dropout=dropout)


def make_training(**changes):
    """A training from always the same weights, with batch norm and dropout; ``changes`` are its fields."""
    model = a_model(dropout=0.2).train()
    precision = Precision(torch.device("cpu"), torch.float32, torch.contiguous_format)
    plain = Training(
        model=model,
        optimizer=build_optimizer(model, "adamw", 0.05, 0.9),
        scaler=precision.scaler(),
        precision=precision,
        schedule=Schedule("cosine", 0.1, 0.0, 1, 0.1, 0.0),
        mixing=Mixing(0.0, 0.0, seed=0),
        plan=None,
        sources=None,
        seed=0,
        loss=CrossEntropy(),
        gradient_clip=1.0,
        micro_batches=MicroBatches(32),
        replica=SingleReplica(model.training_outputs),
    )
    return replace(plain, **changes)


def a_batch(step, num_images=8):
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.eye(CLASSES)[torch.arange(num_images) % CLASSES], torch.arange(num_images))


def take_steps(training, count=3, num_images=8):
    """Some steps; returns their losses and the state they led to."""
    source = ImageSource(training.model, training.precision, batches=None)
    losses = [train_step(training, source, a_batch(step, num_images), 1e-3, step).loss for step in range(count)]
    results = {f"loss {step}": loss for step, loss in enumerate(losses)}
    return {**results, **{name: tensor.clone() for name, tensor in training.model.network.state_dict().items()}}


def same_bits(one, two):
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def plain():
    return take_steps(make_training())


def test_the_comparison_can_fail(plain):
    assert same_bits(plain, take_steps(make_training()))
    assert not same_bits(plain, take_steps(make_training(seed=1)))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam"])
def test_four_times_8_images_are_once_32(optimizer):
    """In float64, in which the order of the sums hardly shows: what differs otherwise is a mistake.

    Batch norm is frozen and there is no dropout, since statistics and masks of parts are not those of the whole.
    """
    found = []
    for size in (32, 8):
        model = a_model().eval().double()
        training = make_training(
            model=model,
            optimizer=build_optimizer(model, optimizer, 0.05, 0.9),
            micro_batches=MicroBatches(size),
            mixing=Mixing(0.4, 1.0, seed=0),
            replica=SingleReplica(lambda values, start, model=model: model.training_outputs(values.double(), start)),
        )
        found.append(take_steps(training, num_images=32))
    for name, tensor in found[0].items():
        tolerance = 1e-6 if name.startswith("loss") else 1e-9  # the loss itself is added up in float32
        torch.testing.assert_close(tensor, found[1][name], rtol=tolerance, atol=1e-12, msg=name)


def test_mixing_with_alpha_0_hands_through(plain):
    def untouched(values, targets, step):
        return values, targets

    assert same_bits(plain, take_steps(make_training(mixing=untouched)))
    assert not same_bits(plain, take_steps(make_training(mixing=Mixing(0.2, 0.0, seed=0))))


def test_hard_labels_as_targets_of_zeros_and_ones(plain):
    """Per image to the bit; the sum over the batch runs in another order."""
    logits, labels = torch.randn(64, CLASSES), torch.arange(64) % CLASSES
    mine = torch.stack([CrossEntropy()(row[None], torch.eye(CLASSES)[label][None]) for row, label in
                        zip(logits, labels, strict=True)])  # fmt: skip
    assert torch.equal(mine, functional.cross_entropy(logits, labels, reduction="none"))

    def of_labels(logits, targets):
        return functional.cross_entropy(logits.float(), targets.argmax(1), reduction="sum")

    hard = take_steps(make_training(loss=of_labels), count=1)
    torch.testing.assert_close(plain["loss 0"], hard["loss 0"], rtol=1e-6, atol=0)


def test_class_weights_of_1_are_none(plain):
    loss = CrossEntropy(class_weights=torch.ones(CLASSES))
    assert same_bits(plain, take_steps(make_training(loss=loss)))
    uneven = CrossEntropy(class_weights=torch.tensor([1.0, 1.0, 1.0, 1.1]))
    assert not same_bits(plain, take_steps(make_training(loss=uneven), count=1))


def test_focal_loss_with_gamma_0_is_cross_entropy(plain):
    assert same_bits(plain, take_steps(make_training(loss=CrossEntropy(focal_gamma=0.0))))
    nearly = take_steps(make_training(loss=CrossEntropy(focal_gamma=1e-6)), count=1)  # by the other branch
    torch.testing.assert_close(nearly["loss 0"], plain["loss 0"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_binary_loss_with_weights_of_1_and_gamma_0(smoothing):
    logits, targets = torch.randn(8, CLASSES), (torch.rand(8, CLASSES) > 0.5).float()
    bare = BinaryCrossEntropy(smoothing)(logits, targets)
    assert torch.equal(bare, BinaryCrossEntropy(smoothing, torch.ones(CLASSES))(logits, targets))
    assert torch.equal(bare, BinaryCrossEntropy(smoothing, None, 0.0)(logits, targets))


def test_an_average_with_decay_0_is_the_weights_themselves(plain):
    training = make_training()
    training = replace(training, average=MovingAverage(training.model.network, 0.0))
    assert same_bits(plain, take_steps(training))  # the training is none the wiser
    with training.average.applied():
        averaged = training.model.network.state_dict()
        assert all(torch.equal(tensor, plain[name]) for name, tensor in averaged.items())
    with NullAverage().applied():
        assert all(torch.equal(tensor, plain[name]) for name, tensor in training.model.network.state_dict().items())


def test_an_average_moves_batch_norms_statistics_and_leaves_the_training_alone(plain):
    training = make_training()
    start = {name: tensor.clone() for name, tensor in training.model.network.state_dict().items()}
    training = replace(training, average=MovingAverage(training.model.network, 0.9))
    assert same_bits(plain, take_steps(training))
    with training.average.applied():
        averaged = training.model.network.state_dict()
        names = [name for name in averaged if name.endswith(("running_mean", "running_var"))]
        assert len(names) > 50
        for name in names:
            assert not torch.equal(averaged[name], start[name]), f"{name} is not averaged"
            assert not torch.equal(averaged[name], plain[name]), f"{name} is the last one"


def test_images_that_grow_to_their_own_size_are_not_touched(plain):
    assert same_bits(plain, take_steps(make_training(resizing=GrowingImages((32,), 3, 1))))
    assert not same_bits(plain, take_steps(make_training(resizing=GrowingImages((24, 32), 3, 1))))
