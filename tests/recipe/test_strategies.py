"""Strategies and the moving average in real runs of the training command."""

import pytest
import torch
from PIL import Image

from sat_vg.backbone_finetuning.engine.linear_probe import solve_linear_probe
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe


def flags(folder, *more):
    return ("--dataset_path", folder, "--backbone", "resnet18", "--num_epochs", 3, *more)


def test_each_phase_trains_its_stages_alone(class_folders, train_here):
    """lp_ft: after the probe the backbone is bit for bit what it was; after the whole it is not."""
    probe = train_here(*flags(class_folders, "--strategy", "linear_probe", "--probe_solver", "sgd"), folder="probe")
    assert probe.code == 0, probe.err
    assert "phases: linear_probe for 3 epochs, 0.00 M trained" in probe.out
    lp_ft = ("--strategy", "lp_ft", "--probe_solver", "sgd", "--phase_epochs", "1,2")
    both = train_here(*flags(class_folders, *lp_ft), folder="both")
    assert both.code == 0, both.err
    assert [line["phase"] for line in both.epochs] == ["linear_probe", "full", "full"]
    start = FineTuneModel("resnet18", 3, pretrained=False, image_size=32).network.state_dict()
    probed = torch.load(probe.folder / "ckpt/last.pt", weights_only=True)["network"]
    finished = torch.load(both.folder / "ckpt/last.pt", weights_only=True)["network"]
    for name, value in start.items():
        if not name.startswith("fc."):
            assert torch.equal(probed[name], value), f"{name} moved in a linear probe"
    assert not torch.equal(probed["fc.weight"], start["fc.weight"])
    assert not torch.equal(finished["conv1.weight"], start["conv1.weight"])


def test_the_exact_probe_is_the_optimum_on_the_frozen_features(class_folders, train_here):
    run = train_here(*flags(class_folders, "--strategy", "linear_probe"), folder="exact")
    assert run.code == 0, run.err
    assert "exact linear probe on 27 images: L2 1e" in run.out
    assert [(line["phase"], line["step"]) for line in run.epochs] == [("linear_probe", 0)]
    model = FineTuneModel.load_checkpoint(run.best_model)
    start = FineTuneModel("resnet18", 3, pretrained=False, image_size=32).network.state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, start[name]) != name.startswith("fc.")
    # What the optimum is made of: the training images as the validation sees them, and not the augmented ones.
    transform = model.preprocessing.transforms()
    paths = sorted((class_folders / "train").rglob("*.*"))
    images = torch.stack([transform(Image.open(path)) for path in paths])
    labels = torch.tensor([model.class_names.index(path.parent.name) for path in paths])
    with torch.no_grad():
        features = model.forward_pooled(images)
    strength = float(run.out.split("L2 ")[1].split()[0])
    generator = torch.Generator().manual_seed(0)
    again = solve_linear_probe(features, labels, 3, generator)
    with torch.no_grad():
        mine, theirs = model.forward_head(features), features @ again.weight.T + again.bias
    assert again.strength == strength
    torch.testing.assert_close(mine.softmax(1), theirs.softmax(1), atol=0.05, rtol=0)


def test_lp_ft_goes_on_from_the_exact_probe(class_folders, train_here):
    run = train_here(*flags(class_folders, "--strategy", "lp_ft", "--ema_decay", 0.5), folder="exact_lp_ft")
    assert run.code == 0, run.err
    assert [line["phase"] for line in run.epochs] == ["linear_probe", "full", "full", "full"]


def test_optimizer_state_survives_a_change_of_phase(class_folders, train_here):
    run = train_here(
        *flags(class_folders, "--strategy", "progressive", "--save_frequency", 1, "--max_checkpoints", 9)
    )
    assert run.code == 0, run.err
    assert [line["phase"] for line in run.epochs] == ["head", "last_2", "last_5"]
    optimizer = torch.load(run.folder / "ckpt/last.pt", weights_only=True)["optimizer"]
    steps = {}
    for group in optimizer["param_groups"]:
        for index in group["params"]:
            steps[group["name"].removesuffix("/no_decay")] = int(optimizer["state"][index]["step"])
    per_epoch = steps["head"] // 3
    assert per_epoch >= 1
    # Adam's own count of steps: three phases for the head, two for the last two stages, one for the others.
    assert steps == {
        "stem": per_epoch, "layer1": per_epoch, "layer2": per_epoch,
        "layer3": 2 * per_epoch, "layer4": 2 * per_epoch, "head": 3 * per_epoch,
    }  # fmt: skip


def test_the_average_is_what_is_validated_and_saved(class_folders, train_here):
    run = train_here(*flags(class_folders, "--ema_decay", 0.9, "--num_epochs", 1), folder="ema")
    assert run.code == 0, run.err
    last = torch.load(run.folder / "ckpt/last.pt", weights_only=True)
    best = torch.load(run.best_model, weights_only=True)["state_dict"]
    for name, value in last["average"].items():
        assert torch.equal(best[name], value)
        assert not torch.equal(last["network"][name], value) or name.endswith("num_batches_tracked")
    # Without decay it is the run without an average, to the bit.
    plain = train_here(*flags(class_folders, "--num_epochs", 1), folder="plain")
    network = torch.load(plain.folder / "ckpt/last.pt", weights_only=True)["network"]
    assert all(torch.equal(value, network[name]) for name, value in last["network"].items())


def test_a_strategy_that_does_not_fit_is_refused_before_the_data_are_read(class_folders, train_here):
    run = train_here(*flags(class_folders, "--strategy", "last_layers", "--last_layers", 9))
    assert run.code == 2
    assert "last_layers = 9: this backbone has 5 stages: stem, layer1" in run.err
    assert "Traceback" not in run.err
