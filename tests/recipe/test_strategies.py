"""Strategies and the moving average in real runs of the training command."""

import os
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
import torchvision
from conftest import SHARED, environment, train_command
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._pytree import tree_leaves

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.linear_probe import solve_linear_probe

pytestmark = pytest.mark.recipe


SHUFFLENET = ("--backbone", "shufflenet_v2_x0_5")  # has batch norm, and states of a thirtieth of a ResNet's


def flags(folder, *more):
    return ("--dataset_path", folder, "--backbone", "resnet18", "--num_epochs", 3, *more)


def test_each_phase_trains_its_stages_alone(class_folders, train_here):
    """lp_ft: after the probe the backbone is bit for bit what it was; after the whole it is not."""
    probed = (*SHUFFLENET, "--strategy", "linear_probe", "--probe_solver", "sgd")
    probe = train_here(*flags(class_folders, *probed), folder="probe")
    assert probe.code == 0, probe.err
    assert "phases: linear_probe for 3 epochs, 0.00 M trained" in probe.out
    lp_ft = (*SHUFFLENET, "--strategy", "lp_ft", "--probe_solver", "sgd", "--phase_epochs", "1,2")
    both = train_here(*flags(class_folders, *lp_ft), folder="both")
    assert both.code == 0, both.err
    assert [line["phase"] for line in both.epochs] == ["linear_probe", "full", "full"]
    start = FineTuneModel(SHUFFLENET[1], 3, pretrained=False, image_size=32).network.state_dict()
    probed = torch.load(probe.folder / "ckpt/last.pt", weights_only=True)["network"]
    finished = torch.load(both.folder / "ckpt/last.pt", weights_only=True)["network"]
    for name, value in start.items():
        if not name.startswith("fc."):
            assert torch.equal(probed[name], value), f"{name} moved in a linear probe"
    assert not torch.equal(probed["fc.weight"], start["fc.weight"])
    assert not torch.equal(finished["conv1.0.weight"], start["conv1.0.weight"])


def test_the_exact_probe_is_the_optimum_on_the_frozen_features(class_folders, train_here):
    run = train_here(*flags(class_folders, "--strategy", "linear_probe"), folder="exact")
    assert run.code == 0, run.err
    assert "exact linear probe on 27 images: L2 1e" in run.out
    assert " (by 5 folds: log-loss " in run.out
    assert [(line["phase"], line["step"]) for line in run.epochs] == [("linear_probe", 0)]
    assert "  lr " not in run.out  # it has none
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
    run = train_here(
        *flags(class_folders, *SHUFFLENET, "--strategy", "lp_ft", "--ema_decay", 0.5), folder="exact_lp_ft"
    )
    assert run.code == 0, run.err
    assert [line["phase"] for line in run.epochs] == ["linear_probe", "full", "full", "full"]


def test_optimizer_state_survives_a_change_of_phase(class_folders, train_here):
    run = train_here(
        *flags(class_folders, *SHUFFLENET, "--strategy", "progressive", "--save_frequency", 1, "--max_checkpoints", 9)
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
        "stem": per_epoch, "stage2": per_epoch, "stage3": per_epoch,
        "stage4": 2 * per_epoch, "conv5": 2 * per_epoch, "head": 3 * per_epoch,
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


class PressesKeys:
    """A terminal at which a signal is sent the moment a line begins with what is waited for."""

    def __init__(self, terminal, waited_for):
        self.terminal, self.waited_for = terminal, waited_for

    def write(self, text):
        if text.startswith(self.waited_for):
            os.kill(os.getpid(), signal.SIGTERM)
        return self.terminal.write(text)

    def __getattr__(self, name):
        return getattr(self.terminal, name)


SMALL = (*SHUFFLENET, "--micro_batch_size", 3, "--learning_rate", 3e-3, "--dropout", 0.3)
TIMES = {"seconds", "images_per_second"}


def lines_of(run):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in run.lines]


def require_equal(whole, cut):
    """The same weights, optimizer, history, best model and lines, to the bit."""
    for name, parts in (
        ("last.pt", ("network", "optimizer", "average", "origin")),
        ("best_model.pt", ("state_dict", "metrics")),
    ):
        one, two = (torch.load(run.folder / "ckpt" / name, weights_only=True) for run in (whole, cut))
        for part in parts:
            pairs = zip(tree_leaves(one[part]), tree_leaves(two[part]), strict=True)
            assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs), (name, part)
        if name == "last.pt":
            assert one["state"] | {"train_seconds": 0} == two["state"] | {"train_seconds": 0}
            assert one["origin"]
    assert lines_of(whole) == lines_of(cut)


# The first epoch of each phase has just been told; the mixing begins; it is done, and what follows it is not.
MIXING = ["phase wise_ft: "]
SIX_PHASES = [f"epoch {number:3d}/13" for number in (*range(1, 13, 2), 12)]


@pytest.mark.parametrize(
    ("strategy", "waits"),
    [
        (
            ("progressive", "--phase_epochs", "2,2,2", "--learning_rate", 2e-3),
            [f"epoch {n:3d}/7" for n in (1, 3, 5, 6)] + MIXING,
        ),
        pytest.param(("progressive", "--num_epochs", 12), SIX_PHASES + MIXING, marks=pytest.mark.slow),
        pytest.param(
            ("lp_ft", "--num_epochs", 2),
            ["exact linear probe", *(f"epoch {n:3d}/4" for n in (1, 2, 3)), *MIXING],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["three", "six", "lp_ft"],
)
def test_stopped_in_each_phase_it_ends_in_the_same_bits(class_folders, train_here, monkeypatch, strategy, waits):
    given = ("--dataset_path", class_folders, *SMALL, "--num_epochs", 6, "--strategy", *strategy, "--ema_decay", 0.5,
             "--wise_ft", "true", "--early_stopping_metric", "val_loss", "--early_stopping_patience", 0)  # fmt: skip
    whole = train_here(*given, folder="whole")
    assert whole.code == 0, whole.err
    phases = []
    for waited_for in waits:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", PressesKeys(sys.stdout, waited_for))
            stopped = train_here(*given, folder="cut")
        assert stopped.code == 75, (waited_for, stopped.err)
        phases.append(torch.load(stopped.folder / "ckpt/last.pt", weights_only=True)["state"]["phase"])
    assert set(phases) == set(range(len({line["phase"] for line in whole.epochs})))
    cut = train_here(*given, folder="cut")
    assert cut.code == 0, cut.err
    require_equal(whole, cut)
    # Mixed before the last stop, and not again: where the share lies between 0 and 1, that would be another mixture.
    assert any(line.startswith(MIXING[0]) for line in whole.out.splitlines())
    assert not any(line.startswith(MIXING[0]) for line in cut.out.splitlines())


KILLED = """
import os, signal, sys
from sat_vg.backbone_finetuning.train import main

class Terminal:
    def write(self, text):
        if text.startswith(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return sys.__stdout__.write(text)

    def flush(self):
        sys.__stdout__.flush()

sys.stdout = Terminal()
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_killed_in_each_phase_it_ends_in_the_same_bits(class_folders, train, tmp_path):
    given = ("--dataset_path", class_folders, *SMALL, "--num_epochs", 12, "--strategy", "progressive",
             "--ema_decay", 0.5, "--wise_ft", "true", "--early_stopping_metric", "val_loss",
             "--early_stopping_patience", 0, "--save_every_steps", 1)  # fmt: skip
    whole = train(*given, folder="whole")
    assert whole.code == 0, whole.err
    phases = set()
    for waited_for in SIX_PHASES + MIXING:
        command = [sys.executable, "-c", KILLED, waited_for, *train_command(tmp_path / "cut", *given)[3:]]
        killed = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        phases.add(torch.load(tmp_path / "cut/ckpt/last.pt", weights_only=True)["state"]["phase"])
    assert phases == set(range(6))  # while the weights are mixed nothing is saved
    cut = train(*given, folder="cut")
    assert cut.code == 0, cut.err
    require_equal(whole, cut)


def test_wise_ft_chooses_between_the_start_and_the_end_of_the_last_phase(class_folders, train_here):
    # In fp32, where the probe's phase computes as the later ones do: equal weights have equal losses.
    given = (*flags(class_folders, *SMALL), "--strategy", "lp_ft", "--max_checkpoints", 9)
    given += ("--mixed_precision", "false")
    plain = train_here(*given, folder="plain")
    mixed = train_here(*given, "--wise_ft", "true", folder="mixed")
    assert mixed.code == 0, mixed.err
    assert [line["phase"] for line in mixed.epochs] == ["linear_probe", "full", "full", "full", "wise_ft"]
    same = len(lines_of(plain))
    assert lines_of(mixed)[:same] == lines_of(plain)  # what comes before is the run without
    last = mixed.epochs[-1]
    share = last["wise_ft_share"]
    assert f"phase wise_ft: {share:g} of the trained weights" in mixed.out
    start, end = (
        torch.load(plain.folder / f"ckpt/step_{step:08d}.pt", weights_only=True)["network"]
        for step in (0, plain.epochs[-1]["step"])
    )
    finished = torch.load(mixed.folder / "ckpt/last.pt", weights_only=True)["network"]
    for name, value in finished.items():
        if value.is_floating_point():
            assert torch.equal(value, torch.lerp(start[name], end[name], share)), name
    # At least as good as everything before, or else not kept.
    best_before = max(line["val_accuracy"] for line in plain.epochs)
    best = torch.load(mixed.best_model, weights_only=True)
    assert best["metrics"]["val_accuracy"] == max(best_before, last["val_accuracy"])
    assert (best["metrics"]["epoch"] == 5) == (last["val_accuracy"] >= best_before)
    events = EventAccumulator(str(mixed.folder / "logs"))
    events.Reload()
    assert [event.value for event in events.Scalars("epoch/wise_ft_share")] == [pytest.approx(share)]


def test_a_run_from_before_wise_ft_goes_on(class_folders, train_here, monkeypatch):
    given = flags(class_folders, *SMALL)
    whole = train_here(*given, folder="whole")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", PressesKeys(sys.stdout, "epoch   1/3"))
        assert train_here(*given, folder="cut").code == 75
    path = whole.folder.parent / "cut/ckpt/last.pt"
    content = torch.load(path, weights_only=True)
    del content["origin"], content["state"]["wise_ft_share"]
    del content["config"]["wise_ft"]
    torch.save(content, path)
    cut = train_here(*given, folder="cut")
    assert cut.code == 0, cut.err
    assert lines_of(whole) == lines_of(cut)


def test_a_run_with_settings_that_are_retired_goes_on(class_folders, train_here, monkeypatch):
    given = flags(class_folders, *SMALL)
    whole = train_here(*given, "--freeze_early_layers", 1, folder="whole")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", PressesKeys(sys.stdout, "epoch   1/3"))
        assert train_here(*given, "--freeze_early_layers", 1, folder="cut").code == 75
    path = whole.folder.parent / "cut/ckpt/last.pt"
    content = torch.load(path, weights_only=True)
    old = {"freeze_layers": 1, "freeze_early_layers": False, "ema_decay": 0.9, "best_weights": "trained"}
    content["config"] |= old | {"max_bad_fraction": 0.01}
    content["average"] = {name: value for name, value in content["network"].items() if value.is_floating_point()}
    torch.save(content, path)
    retired = [part for name, value in old.items() for part in (f"--{name}", str(value).lower())]
    cut = train_here(*given, *retired, folder="cut")
    assert cut.code == 0, cut.err
    for line in (
        "freeze_layers = 1 is now freeze_early_layers = 1",
        "best_weights = 'trained' is now ema_decay = 0.0",
    ):
        assert line in cut.out
    assert lines_of(whole) == lines_of(cut)


def test_lp_ft_trains_everything_but_the_statistics_that_its_head_was_fitted_with(class_folders, train_here):
    torch.manual_seed(0)
    pretrained = torchvision.models.shufflenet_v2_x0_5(num_classes=7)
    pretrained.train()(torch.randn(64, 3, 32, 32) * 2 + 1)  # statistics other than those of the images here
    torch.save(pretrained.state_dict(), class_folders / "weights.pth")
    weights = ("--pretrained", "true", "--weights", class_folders / "weights.pth")
    start = pretrained.state_dict()
    for strategy, keeps in (("lp_ft", True), ("full", False)):
        run = train_here(*flags(class_folders, *SMALL, *weights), "--strategy", strategy, folder=strategy)
        assert run.code == 0, run.err
        finished = torch.load(run.folder / "ckpt/last.pt", weights_only=True)["network"]
        statistics = [name for name in finished if ".running_" in name]
        assert len(statistics) > 50
        assert all(torch.equal(finished[name], start[name]) for name in statistics) is keeps
        trained = ("conv1.0.weight", "conv1.1.weight", "conv1.1.bias", "conv5.0.weight", "conv5.1.weight")
        assert not any(torch.equal(finished[name], start[name]) for name in trained)


@pytest.mark.slow
def test_lp_ft_does_not_lose_its_probe_on_real_images(mobilenet_weights, train_here, tmp_path):
    """Where batch norm goes by the statistics of batches, the first epoch leaves half of the probe's accuracy."""
    archive = SHARED / "data/ucmerced.zip"
    if not archive.exists():
        pytest.skip(f"the real images are not at hand: no {archive}")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path, [name for name in packed.namelist() if name.endswith(("0.jpg", "5.jpg"))])
    root = next(tmp_path.glob("*/forest")).parent
    run = train_here(
        "--dataset_path", root, "--backbone", "mobilenet_v2", "--pretrained", "true", "--weights", mobilenet_weights,
        "--image_size", 64, "--num_epochs", 1, "--batch_size", 32, "--strategy", "lp_ft",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert "336 train, 84 val" in run.out
    probe, after = (line["val_accuracy"] for line in run.epochs)
    assert probe > 0.5
    assert after > probe - 0.05
