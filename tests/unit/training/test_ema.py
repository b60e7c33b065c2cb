"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from sat_vg.backbone_finetuning.training.ema import MovingAverage, NullAverage
from sat_vg.backbone_finetuning.utils.errors import CheckpointError


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def step(network, scale=1.0):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    network.train()(torch.randn(8, 3, 2, 2) + 3)


def values(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_it_follows_the_formula_for_parameters_and_buffers(network):
    average = MovingAverage(network, 0.5)
    expected = values(network)
    for number in range(20):
        step(network)
        average.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        for name, value in values(network).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    raw = values(network)
    with average.applied():
        inside = values(network)
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(inside[name], expected[name])
        assert not torch.equal(inside[name], raw[name]), f"{name} is not averaged"
    assert inside["1.num_batches_tracked"] == raw["1.num_batches_tracked"] == 20
    for name, value in values(network).items():
        assert torch.equal(value, raw[name]), f"{name} was not put back"


def test_with_decay_0_it_is_the_weights_themselves(network):
    average = MovingAverage(network, 0.0)
    for number in range(3):
        step(network)
        average.update(number)
    raw = values(network)
    with average.applied():
        for name, value in values(network).items():
            assert torch.equal(value, raw[name])


def test_an_error_inside_puts_the_weights_back(network):
    average = MovingAverage(network, 0.9)
    step(network)
    raw = values(network)
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        raise RuntimeError("inside")
    assert all(torch.equal(value, raw[name]) for name, value in values(network).items())


def test_its_state_goes_on_where_it_was(network):
    average = MovingAverage(network, 0.9)
    step(network)
    average.update(0)
    other = MovingAverage(network, 0.9)
    other.load_state_dict({name: value.clone() for name, value in average.state_dict().items()})
    step(network)
    average.update(1)
    other.update(1)
    for name, value in average.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    with pytest.raises(CheckpointError, match="an average of 0 tensors, the network has 6"):
        average.load_state_dict(NullAverage().state_dict())


def test_an_optimizer_goes_on_after_a_swap(network):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    average = MovingAverage(network, 0.9)
    before = values(network)
    for number in range(2):
        network(torch.randn(8, 3, 2, 2)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(number)
        with average.applied():
            pass
    assert not torch.equal(network[0].weight, before["0.weight"])


def test_no_average_is_nothing(network):
    raw = values(network)
    none = NullAverage()
    none.update(0)
    none.load_state_dict({})
    with none.applied():
        assert all(torch.equal(value, raw[name]) for name, value in values(network).items())
