"""Every row of the table; ``make backbones`` writes what is measured here into the listing.

By default all rows are measured, and one of each family computes.
"""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from contract.networks import (
    SMALL,
    filled_network,
    meta_network,
    model_on,
    num_parameters,
    slow_but,
    smallest_size,
)
from torch import nn
from torchvision.ops import StochasticDepth

from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.facts import FACTS_FILE, read_facts
from sat_vg.backbone_finetuning.models.networks.measuring import measure
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, head_parameters
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.training.losses import CrossEntropy
from sat_vg.backbone_finetuning.training.optim import build_optimizer, set_learning_rate, spared_from_decay
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing

NAMES = list(BACKBONES)
# A step takes four times the memory of the parameters: larger ones are composed, or only shaped.
TRAINED = [name for name, row in BACKBONES.items() if num_parameters(row) < 25e6]
COMPOSED = [name for name, row in BACKBONES.items() if num_parameters(row) < 210e6]


def test_the_listing_has_every_row():
    assert list(read_facts()) == NAMES, "make backbones measures the listing anew"
    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(NAMES)
    assert len(TRAINED) > 35
    assert len(COMPOSED) > 70


@pytest.fixture(scope="module", params=NAMES)
def shapes(request):
    """A row and its network without values, built once for all tests of shapes."""
    row = BACKBONES[request.param]
    return row, meta_network(row, smallest_size(row))


def test_every_parameter_is_one_stages_or_the_heads_and_counted_in_the_listing(shapes):
    row, network = shapes
    stages, head = row.family.stages(network), head_parameters(network, row.family)
    owned = [n for stage in stages for n, _ in stage.named_parameters(network)]
    assert head
    assert sorted([*owned, *head]) == sorted(n for n, _ in network.named_parameters())
    assert len(stages) == len({stage.name for stage in stages}) >= 4
    counted = [(stage.name, sum(p.numel() for _, p in stage.named_parameters(network))) for stage in stages]
    facts = read_facts()[row.name]
    assert counted == [(stage.name, stage.parameters) for stage in facts.stages], "make backbones"
    assert find_member(network, row.family.classifier).in_features == facts.embed_dim
    assert sorted({entry.name for entry in row.family.weights(row.name).values()}) == list(facts.weights)


def test_weight_decay_pulls_at_the_matrices_of_layers_alone(shapes):
    """No norms, biases, position embeddings, class tokens and scales, of whatever shape they are."""
    row, network = shapes
    of_layers = [
        f"{module_name}.{own}"
        for module_name, module in network.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if (isinstance(module, (nn.Linear, nn.Conv2d)) and parameter.ndim > 1) or own == "in_proj_weight"
    ]
    of_layers = [found for found in of_layers if "cpb_mlp" not in found]  # these make Swin v2's position biases
    assert len(of_layers) > 5
    spared = spared_from_decay(network, row.family)
    assert sorted(n for n, _ in network.named_parameters() if n not in spared) == sorted(of_layers)


@pytest.mark.parametrize("name", slow_but(SMALL, NAMES))
def test_the_listing_is_as_measured(name):
    """Channels, strides and multiples, for which the network is run; parameters are counted above for all rows."""
    row = BACKBONES[name]
    assert measure(row, meta_network(row, smallest_size(row))) == read_facts()[name], "make backbones"


@pytest.mark.parametrize("name", slow_but(SMALL, NAMES))
def test_images_of_any_size(name):
    row = BACKBONES[name]
    network = meta_network(row, smallest_size(row))
    with_maps = [stage.name for stage in row.family.stages(network) if stage.gives_map]
    extractor = FeatureExtractor(network, row, preprocessing=Preprocessing(image_size=224), out_names=with_maps)
    for height, width in ((256, 192), (230, 187)):
        maps = extractor(torch.zeros(2, 3, height, width, device="meta"))
        assert tuple(maps) == extractor.out_names
        for found, channels, stride in zip(maps.values(), extractor.channels, extractor.strides, strict=True):
            multiple = extractor.size_divisibility
            padded = [-(-side // multiple) * multiple for side in (height, width)]
            assert found.shape[:2] == (2, channels)
            # Families round at the border up or down, and some do not pad it.
            assert all(abs(n - side / stride) < 4 for n, side in zip(found.shape[2:], padded, strict=True))
            if (height, width) == (256, 192) and row.family.name not in ("AlexNet", "Inception v3", "SqueezeNet"):
                assert found.shape[2:] == tuple(side // stride for side in padded)


@pytest.fixture(scope="module")
def model(request):
    """A model with values, built once; tests that change it copy it."""
    return model_on(filled_network, request.param).eval()


@pytest.mark.parametrize("model", slow_but(SMALL, COMPOSED), indirect=True)
def test_stages_compose_to_the_networks_own_forward_bitwise(model):
    images = torch.randn(2, 3, model.preprocessing.image_size, model.preprocessing.image_size)
    with torch.no_grad():
        own = model.network(images)
        assert torch.equal(model(images), own)
        assert own.isfinite().all()
        assert not torch.equal(own[0], own[1])


@pytest.mark.parametrize("model", slow_but(SMALL, TRAINED), indirect=True)
def test_frozen_stages_stay_and_all_others_move(model, tmp_path):
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0  # a block that is dropped for both images in both steps would get no gradient
    keep = len(model.stages) // 2
    model.set_trainable(model.stage_names[keep:])
    assert model.num_frozen_stages == keep
    optimizer = build_optimizer(model, "adamw", 0.1, 0.9)
    set_learning_rate(optimizer, 1e-3)
    side = model.preprocessing.image_size
    images, targets = torch.randn(2, 3, side, side), torch.eye(7)[:2]
    before = {n: v.clone() for n, v in model.network.state_dict().items()}
    with torch.no_grad():
        output_before = model.run_stages(images, stop=keep)
    for _ in range(2):
        for module in (model, model.network, *model.network.modules()):
            module.train()  # whoever calls it, on whatever part
        losses = [weight * CrossEntropy()(logits, targets) for weight, logits in model.training_outputs(images)]
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    of_frozen = tuple(f"{member}." for stage in model.stages[:keep] for member in stage.members)
    trained = dict(model.network.named_parameters())
    moved = 0
    for n, value in model.network.state_dict().items():
        is_frozen = f"{n}.".startswith(of_frozen)
        if is_frozen:
            assert torch.equal(value, before[n]), f"{n} is frozen and moved"
        elif n in trained:
            assert trained[n].requires_grad
            moved += not torch.equal(value, before[n])
    num_trained = sum(not f"{n}.".startswith(of_frozen) for n in trained)
    assert moved == num_trained
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.run_stages(images, stop=keep), output_before)
    saved_and_loaded(model, images, tmp_path)


def saved_and_loaded(model, images, folder):
    """Save → load → extractor gives the same bits, and so does the pooled vector with the head."""
    model.save_checkpoint(folder / "best_model.pt", config={"a": 1}, metrics={"val_accuracy": 0.5})
    loaded = FineTuneModel.load_checkpoint(folder / "best_model.pt")
    assert not loaded.training
    assert (loaded.class_names, loaded.preprocessing) == (model.class_names, model.preprocessing)
    mine, theirs = model.get_feature_extractor(), loaded.get_feature_extractor()
    assert theirs.provenance["metrics"] == {"val_accuracy": 0.5}
    with torch.no_grad():
        for one, other in zip(mine(images).values(), theirs(images).values(), strict=True):
            assert torch.equal(one, other)
        pooled = theirs.forward_pooled(images)
        assert pooled.shape == (len(images), theirs.embed_dim)
        assert torch.equal(loaded.forward_head(pooled), model(images))
    (folder / "best_model.pt").unlink()


@pytest.mark.parametrize("name", slow_but(SMALL, [name for name in NAMES if name not in TRAINED]))
def test_large_ones_freeze_and_are_reached_by_gradients(name):
    model = model_on(meta_network, name)
    side = model.preprocessing.image_size
    keep = len(model.stages) // 2
    for first in (0, keep):
        model.set_trainable(model.stage_names[first:])
        for module in (model, model.network, *model.network.modules()):
            module.train()
        model(torch.zeros(2, 3, side, side, device="meta")).sum().backward()
        frozen = {n for stage in model.stages[:first] for n, _ in stage.named_parameters(model.network)}
        for n, parameter in model.network.named_parameters():
            assert (parameter.grad is None) == (n in frozen), n
            parameter.grad = None
        assert not any(m.training for stage in model.stages[:first] for m in stage.modules(model.network))


def write_listing() -> None:
    facts = {}
    for name in NAMES:
        row = BACKBONES[name]
        facts[name] = measure(row, meta_network(row, smallest_size(row))).to_dict()
        print(name, file=sys.stderr)
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in facts.items()]
    Path(FACTS_FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write_listing()
