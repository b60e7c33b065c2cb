"""Weights between the start and the end of a phase."""

import pytest
import torch
from torch import nn

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.training.checkpoint import (
    RunState,
    RunTensors,
    read_run,
    restore_run,
    save_run,
)
from sat_vg.backbone_finetuning.training.ema import MovingAverage, NullAverage
from sat_vg.backbone_finetuning.training.phases import EXACT_PROBE, Phase, then_mixed
from sat_vg.backbone_finetuning.training.run_identity import RunIdentity
from sat_vg.backbone_finetuning.training.wise_ft import SHARES, NullStartWeights, PhaseStartWeights
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.stop_signals import StopRequested

FULL = Phase("full", 3, ("stem",))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def train(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    network.train()(torch.randn(8, 3, 2, 2) + 3)


def values(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def seen(accuracy, loss=1.0):
    return Validation(loss=loss, accuracy=accuracy, counts=torch.zeros(3, 2))


def looking_for(network, wanted):
    """A look that finds the network the better the nearer it is to ``wanted``."""

    def look():
        far = sum((value - wanted[name]).abs().sum() for name, value in network.state_dict().items())
        return seen(1 / (1 + float(far)))

    return look


def test_the_best_share_is_found_for_weights_and_statistics(network):
    origin = PhaseStartWeights(network, "val_accuracy")
    origin.enter(FULL, at_its_start=True)
    start = values(network)
    train(network)
    end = values(network)
    wanted = {n: torch.lerp(start[n], end[n], 0.3) if v.is_floating_point() else end[n] for n, v in start.items()}
    mixed = origin.mix(NullAverage(), looking_for(network, wanted))
    assert mixed.share == 0.3
    assert len(mixed.values) == len(SHARES) == 11
    assert mixed.values[3] == max(mixed.values)
    for name, value in values(network).items():
        torch.testing.assert_close(value, wanted[name])
    assert not torch.equal(network[1].running_mean, end["1.running_mean"])
    assert network[1].num_batches_tracked == 1
    assert "0.3 of the trained weights and 0.7 of those before them" in mixed.description


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_start_and_end_are_met_to_the_bit(network, share):
    origin = PhaseStartWeights(network, "val_accuracy")
    origin.enter(FULL, at_its_start=True)
    ends = [values(network)]
    train(network)
    ends.append(values(network))
    wanted = ends[int(share)]
    counted = {**wanted, "1.num_batches_tracked": ends[1]["1.num_batches_tracked"]}
    assert origin.mix(NullAverage(), looking_for(network, counted)).share == share
    for name, value in values(network).items():
        assert torch.equal(value, counted[name]), name


def test_the_metric_decides_and_then_the_loss(network):
    found = {0.2: seen(0.9, 0.5), 0.5: seen(0.9, 0.4), 0.8: seen(0.8, 0.1), 1.0: seen(float("nan"), float("nan"))}
    for metric, expected in (("val_accuracy", 0.5), ("val_loss", 0.8)):
        shares = iter(SHARES)
        origin = PhaseStartWeights(network, metric)
        origin.enter(FULL, at_its_start=True)
        assert (
            origin.mix(NullAverage(), lambda shares=shares: found.get(next(shares), seen(0.1, 9))).share == expected
        )


def test_a_stop_leaves_everything_as_it_was(network):
    origin, average = PhaseStartWeights(network, "val_accuracy"), MovingAverage(network, 0.5)
    origin.enter(FULL, at_its_start=True)
    train(network)
    average.update(0)
    before = values(network), {name: value.clone() for name, value in average.state_dict().items()}
    found = iter([seen(0.5), seen(0.6)])

    def validate():
        for validation in found:
            return validation
        raise StopRequested

    with pytest.raises(StopRequested):
        origin.mix(average, validate)
    assert all(torch.equal(value, before[0][name]) for name, value in values(network).items())
    assert all(torch.equal(value, before[1][name]) for name, value in average.state_dict().items())


def test_with_an_average_its_weights_are_the_end(network):
    origin, average = PhaseStartWeights(network, "val_accuracy"), MovingAverage(network, 0.5)
    origin.enter(FULL, at_its_start=True)
    train(network)
    average.update(0)
    with average.applied():
        wanted = values(network)
    assert not torch.equal(wanted["0.weight"], network[0].weight)
    assert origin.mix(average, looking_for(network, wanted)).share == 1.0
    with average.applied():
        assert all(torch.equal(value, wanted[name]) for name, value in values(network).items())
    assert torch.equal(network[0].weight, wanted["0.weight"])


def test_only_the_start_of_a_phase_of_gradient_steps_is_remembered(network):
    origin = PhaseStartWeights(network, "val_accuracy")
    origin.enter(EXACT_PROBE, at_its_start=True)
    assert origin.state_dict() == {}
    origin.enter(FULL, at_its_start=True)
    start = network[0].weight.detach().clone()
    train(network)
    origin.enter(FULL, at_its_start=False)
    origin.enter(then_mixed([FULL])[-1], at_its_start=True)
    assert torch.equal(origin.state_dict()["0.weight"], start)
    train(network)
    origin.enter(FULL, at_its_start=True)  # a later phase
    assert torch.equal(origin.state_dict()["0.weight"], network[0].weight)


def tensors(network, origin):
    optimizer = torch.optim.AdamW(network.parameters())
    return RunTensors(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), start_weights=origin)


def test_a_checkpoint_holds_what_is_remembered(network, tmp_path):
    origin = PhaseStartWeights(network, "val_accuracy")
    origin.enter(FULL, at_its_start=True)
    train(network)
    identity = RunIdentity(FinetuneConfig().to_dict(), "d", {})
    path = save_run(tmp_path, RunState(phase=1, wise_ft_share=0.4), tensors(network, origin), identity, keep=1)
    fresh = PhaseStartWeights(network, "val_accuracy")
    assert restore_run(read_run(path), tensors(network, fresh)).wise_ft_share == 0.4
    assert origin.state_dict().keys() == fresh.state_dict().keys()
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in origin.state_dict().items())

    content = read_run(path)
    del content["origin"], content["state"]["wise_ft_share"]  # as written before they came
    assert restore_run(content, tensors(network, NullStartWeights())).wise_ft_share is None
    for damaged in ({"0.weight": torch.zeros(1)}, {**origin.state_dict(), "0.weight": torch.zeros(1)}, [1], 7):
        content["origin"] = damaged
        with pytest.raises(CheckpointError, match="the checkpoint does not fit the model"):
            restore_run(content, tensors(network, fresh))


@pytest.mark.parametrize(
    ("value", "loss", "wins"), [(0.5, 0.3, True), (0.5, 0.31, False), (0.5, 0.2, True), (0.4, 0.2, False)]
)
def test_a_mixture_wins_ties_in_the_metric_and_the_loss(value, loss, wins):
    mixed, other = (RunState(best_value=0.5, best_loss=0.3) for _ in range(2))
    assert mixed.note_validation(value, loss, higher_is_better=True, min_delta=0.1, wins_ties=True) is wins
    assert other.note_validation(value, loss, higher_is_better=True, min_delta=0.0) is (wins and loss != 0.3)
