from dataclasses import replace

import pytest
import torch

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.data.loading.mixing import Mixing
from sat_vg.backbone_finetuning.evaluation.metrics import ValidationSums
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.batch_sources import ImageSource
from sat_vg.backbone_finetuning.training.loop import train_step
from sat_vg.backbone_finetuning.training.losses import CrossEntropy
from sat_vg.backbone_finetuning.training.micro_batches import MicroBatches
from sat_vg.backbone_finetuning.training.optim import Schedule, build_optimizer
from sat_vg.backbone_finetuning.training.replicas import SingleReplica
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.utils.precision import Precision


def make_training(micro_batch_size, mixup_alpha=0.0, clip=float("inf"), backbone="resnet18"):
    torch.manual_seed(0)
    # Frozen batch norm: only then can parts of a batch equal the whole.
    model = FineTuneModel(backbone, 4, pretrained=False, image_size=32, dropout=0.3).eval()
    precision = Precision(torch.device("cpu"), torch.float32, torch.contiguous_format)
    return Training(
        model=model,
        optimizer=build_optimizer(model, "sgd", 0.0, 0.0),
        scaler=precision.scaler(),
        precision=precision,
        schedule=Schedule("cosine", 0.1, 0.0, 1, 0.1, 0.0),
        mixing=Mixing(mixup_alpha, 0.0, seed=0),
        plan=None,
        sources=None,
        seed=0,
        loss=CrossEntropy(),
        gradient_clip=clip,
        micro_batches=MicroBatches(micro_batch_size),
        replica=SingleReplica(model.training_outputs),
    )


def feed_of(training):
    return ImageSource(training.model, training.precision, batches=None)


def a_batch(count=16):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.eye(4)[torch.arange(count) % 4], torch.arange(count))


def weights_after_steps(training, count=16):
    for step in range(2):
        train_step(training, feed_of(training), a_batch(count), 0.05, step)
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def test_accumulation_equals_the_whole_batch_also_with_a_short_last_part_and_mixup():
    for count, size, alpha in ((16, 4, 0.0), (15, 4, 0.0), (16, 4, 0.8)):
        whole = weights_after_steps(make_training(count, alpha, clip=1.0), count)
        parts = weights_after_steps(make_training(size, alpha, clip=1.0), count)
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-6), (count, size, alpha)


def test_a_step_is_a_function_of_seed_and_step():
    first, second = make_training(32, 0.4), make_training(32, 0.4)
    torch.rand(17)  # whatever else was drawn in between
    assert torch.equal(weights_after_steps(first), weights_after_steps(second))


def test_clipping_limits_the_step():
    free, clipped = make_training(32), make_training(32, clip=1e-3)
    start = torch.cat([p.detach().flatten() for p in clipped.model.parameters()])
    moved = (weights_after_steps(clipped) - start).norm()
    assert 0 < moved <= 2 * 0.05 * 1e-3 * 1.01
    assert (weights_after_steps(free) - start).norm() > moved


def test_a_step_whose_scaled_gradient_overflows_is_left_out():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    training = replace(make_training(32), scaler=scaler, loss=lambda *pair: 1e6 * CrossEntropy()(*pair))
    start = [p.detach().clone() for p in training.model.parameters()]
    result = train_step(training, feed_of(training), a_batch(), 0.05, 0)
    assert result.loss.isfinite()
    assert not result.gradient_norm.isfinite()
    assert all(torch.equal(one, two) for one, two in zip(start, training.model.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**119


def test_metrics_are_sums_over_uneven_batches():
    logits = torch.randn(11, 3)
    targets = torch.eye(3)[torch.randint(3, (11,))]
    sums = ValidationSums(3, torch.device("cpu"))
    for part, part_targets in zip(logits.split(4), targets.split(4), strict=True):
        sums.add(part, part_targets, CrossEntropy()(part, part_targets))
    result = sums.result()
    assert result.accuracy == (logits.argmax(1) == targets.argmax(1)).double().mean().item()
    assert abs(result.loss - torch.nn.functional.cross_entropy(logits, targets).item()) < 1e-6
    for true in range(3):
        for predicted in range(3):
            count = ((targets.argmax(1) == true) & (logits.argmax(1) == predicted)).sum()
            assert result.confusion[true, predicted] == count


@pytest.mark.parametrize("fails_at", ["forward", "backward"])
@pytest.mark.parametrize(("backbone", "size"), [("shufflenet_v2_x0_5", 4), ("custom_cnn", 2)])
def test_a_step_tried_again_in_smaller_parts_is_the_step_that_begins_with_them(backbone, size, fails_at):
    """To the bit: weights, batch norm's statistics, the optimizer's state, dropout, losses."""
    begun, tried_again = (make_training(of_parts, backbone=backbone) for of_parts in (size, 16))

    def too_much(*pair):
        """Fails in the last part but for those small enough, when the statistics and gradients have moved."""
        loss = CrossEntropy()(*pair)
        if len(pair[0]) > size and fails_at == "forward":
            raise torch.OutOfMemoryError("too little")
        if len(pair[0]) > size:
            loss.register_hook(refuse)
        return loss

    def refuse(gradient):
        raise torch.OutOfMemoryError("too little")

    found = []
    for training in (begun, replace(tried_again, loss=too_much)):
        training.model.train()
        results = [train_step(training, feed_of(training), a_batch(16), 0.05, step) for step in range(2)]
        assert training.micro_batches.size == size
        state = {**training.model.network.state_dict()}
        for place, entries in training.optimizer.state_dict()["state"].items():
            state.update({f"{place}.{name}": value for name, value in entries.items()})
        found.append((results, state))
    (results, state), (other_results, other) = found
    assert results == other_results
    assert state.keys() == other.keys()
    assert any("running_mean" in name for name in state)
    assert [name for name, value in state.items() if not torch.equal(value, other[name])] == []
