"""A state of a run in which something was altered is refused in a sentence, whatever it is, before any of it is used.

The states are those of a real run, saved within an epoch of its second phase, with all that a state can hold.
"""

import copy
import math
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_command, write_classes

from sat_vg.backbone_finetuning.train import main
from sat_vg.backbone_finetuning.training import run as recipe
from sat_vg.backbone_finetuning.training.checkpoint import _CAME_LATER, LAST, read_run, restore_run
from sat_vg.backbone_finetuning.training.checkpoint_checks import wrong_scaler
from sat_vg.backbone_finetuning.training.resumption import require_place
from sat_vg.backbone_finetuning.utils.errors import UserError

pytestmark = pytest.mark.recipe

FLAGS = [
    "--backbone", "shufflenet_v2_x0_5", "--strategy", "lp_ft", "--probe_solver", "sgd", "--num_epochs", 3,
    "--ema_decay", 0.9, "--wise_ft", "true", "--dropout", 0.1, "--save_every_steps", 1, "--max_checkpoints", 99,
]  # fmt: skip
STEP = 8  # of 15, in the second of three phases


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("altered") / "images")


@pytest.fixture(scope="module")
def command(images: Path) -> Callable[[], int]:
    folder = images.parent

    def run() -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SAT_VG_CACHE", str(folder / "cache"))
            return main(train_command(folder, "--dataset_path", images, *FLAGS)[3:])

    return run


@pytest.fixture(scope="module")
def state(images: Path, command: Callable[[], int]) -> dict[str, Any]:
    """What the file of step ``STEP`` holds; the run's own folder has this state and none after it."""
    assert command() == 0
    folder = images.parent / "ckpt"
    for path in folder.glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > STEP:
            path.unlink()
    (folder / LAST).unlink()
    shutil.copyfile(folder / f"step_{STEP:08d}.pt", folder / LAST)
    return read_run(folder / LAST)


@pytest.fixture(scope="module")
def accepts(state: dict[str, Any], command: Callable[[], int]) -> Callable[[dict[str, Any]], None]:
    """Take a state up as the command does, with the very model and plan of that run."""
    seen: list[Any] = []

    class Enough(Exception):
        pass

    def stop(*arguments: Any) -> None:
        seen.extend(arguments)
        raise Enough

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(recipe, "require_place", stop)
        command()
    _, _, training, phases, path, metric = seen

    def take_up(content: dict[str, Any]) -> None:
        found = restore_run(content, training.tensors)
        require_place(found, content, training, phases, path, metric)

    return take_up


NO_NUMBERS = ["many", None, [], {}, math.nan, math.inf, -math.inf, 10**30, 10**400, torch.zeros(2)]
NO_TENSORS = ["a", 3, None, [1.0], {}]


def altered_numbers(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in state["state"].items():
        others: list[Any] = [*NO_NUMBERS, 1j]
        if isinstance(value, bool):
            others = [0, 1, not value, *NO_NUMBERS]
        elif isinstance(value, int):
            others = [-1, -5, 10**9, True, 2.5, *NO_NUMBERS]
        elif isinstance(value, list):
            others = [["x"], [math.nan], [None], [[1.0]], [1.0] * 1000, "many", None, {}, 3]
        if name in ("best_value", "best_loss", "phase_best", "phase_reference", "wise_ft_share"):
            others = [other for other in others if other is not None]
        for other in others:
            yield f"{name} = {other!r}", {**state, "state": {**state["state"], name: other}}
        if name not in _CAME_LATER:
            rest = {key: kept for key, kept in state["state"].items() if key != name}
            yield f"without {name}", {**state, "state": rest}
    accuracies = product(("best_value", "phase_best", "phase_reference"), (1.5, -0.1, 10**6))
    counts = product(("phase", "epoch", "epoch_in_phase", "step", "step_in_epoch", "train_images"), (-1, 1))
    others = [*accuracies, *((name, state["state"][name] + more) for name, more in counts)]
    for name, other in others:
        yield f"{name} = {other}", {**state, "state": {**state["state"], name: other}}


def few_wrong_versions(tensor: torch.Tensor) -> Iterator[Any]:
    """Two, for tensors beside one of which all are tried."""
    yield None
    yield tensor.unsqueeze(0)


def wrong_versions(tensor: torch.Tensor) -> Iterator[Any]:
    yield from NO_TENSORS
    yield tensor.unsqueeze(0)
    yield torch.cat([tensor.reshape(-1)] * 2)
    yield tensor.to(torch.float64 if tensor.dtype != torch.float64 else torch.float32)
    yield tensor.to(torch.complex64)
    if tensor.ndim:
        yield tensor.reshape(-1)[:1]
        yield tensor.to_sparse()
    if tensor.is_floating_point():
        for value in (math.nan, math.inf):
            bad = tensor.clone()
            bad[(-1,) * bad.ndim] = value
            yield bad


def altered_tensors(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in ("network", "average", "origin"):
        names = list(state[part])
        for name in (names[0], names[2], names[-1], next(n for n in names if n.endswith("running_var"))):
            versions = wrong_versions if name == names[0] else few_wrong_versions
            for number, bad in enumerate(versions(state[part][name])):
                yield f"{part} {name} {number}", {**state, part: {**state[part], name: bad}}
            yield f"{part} without {name}", {**state, part: {k: v for k, v in state[part].items() if k != name}}
        yield f"{part} with more", {**state, part: {**state[part], "x": torch.zeros(1)}}
        yield f"{part} as a list", {**state, part: [state[part]]}
        if part != "network":
            yield f"{part} of nothing", {**state, part: {}}
    variance = next(name for name in state["network"] if name.endswith("running_var"))
    below = {**state["network"], variance: -state["network"][variance]}
    yield "a variance below zero", {**state, "network": below}


def altered_optimizers(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    given = state["optimizer"]

    def of(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        changed = {**given, "state": {place: dict(entries) for place, entries in given["state"].items()}}
        change(changed)
        return {**state, "optimizer": changed}

    places = list(given["state"])
    yield "an empty optimizer state", of(lambda o: o["state"].clear())
    for place in (places[0], places[-1]):
        yield f"without {place}", of(lambda o, p=place: o["state"].pop(p))
        yield f"{place} of nothing", of(lambda o, p=place: o["state"].update({p: {}}))
        yield f"{place} as a text", of(lambda o, p=place: o["state"].update({p: "a"}))
        for name, tensor in given["state"][place].items():
            yield f"{place} without {name}", of(lambda o, p=place, n=name: o["state"][p].pop(n))
            for number, bad in enumerate((wrong_versions if place == places[0] else few_wrong_versions)(tensor)):
                if name == "step" and isinstance(bad, torch.Tensor) and bad.dtype == torch.float64:
                    continue  # a count all the same
                yield f"{place} {name} {number}", of(lambda o, p=place, n=name, b=bad: o["state"][p].update({n: b}))
        for steps in (-1.0, 0.0, 1.5, 1e9):
            count = torch.tensor(steps)
            yield f"{place} after {steps} steps", of(lambda o, p=place, c=count: o["state"][p].update(step=c))
        below = given["state"][place]["exp_avg_sq"] - 1
        yield f"{place} below zero", of(lambda o, p=place, b=below: o["state"][p].update(exp_avg_sq=b))
    for place in (10**6, -1, "a", None, True):
        yield f"more at {place}", of(lambda o, p=place: o["state"].update({p: o["state"][places[0]]}))


def altered_groups(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    def of(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        groups = copy.deepcopy(state["optimizer"]["param_groups"])
        changed = {**state["optimizer"], "param_groups": groups}
        change(changed)
        return {**state, "optimizer": changed}

    for part in ("state", "param_groups"):
        yield f"without {part}", of(lambda o, p=part: o.pop(p))
        for bad in (None, "a", 3, [], [1]):
            yield f"{part} = {bad}", of(lambda o, p=part, b=bad: o.update({p: b}))
    yield "a group less", of(lambda o: o["param_groups"].pop())
    yield "a parameter in another group", of(lambda o: o["param_groups"][0]["params"].append(99))
    for key, bads in (("lr", (-1.0, math.nan, "a", None)), ("weight_decay", (7.0, math.nan)), ("name", ("x",)),
                      ("betas", (0.9, (0.9, math.nan), "ab")), ("eps", (None,)), ("params", ([], "a"))):  # fmt: skip
        for bad in bads:
            yield f"{key} = {bad}", of(lambda o, k=key, b=bad: o["param_groups"][0].update({k: b}))


def altered_settings(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for bad in (torch.zeros(3), {"a": 1}, [torch.zeros(2)], object):
        yield f"a setting {bad}", {**state, "config": {**state["config"], "learning_rate": bad}}
    yield "a setting without a name", {**state, "config": {**state["config"], 3: 1}}


@pytest.mark.parametrize(
    ("alter", "fewest"),
    [
        (altered_numbers, 200),
        (altered_tensors, 70),
        (altered_optimizers, 60),
        (altered_groups, 20),
        (altered_settings, 5),
    ],
)
def test_whatever_is_altered_is_refused_in_a_sentence(state, accepts, alter, fewest):
    accepts(state)
    taken, count = [], 0
    for what, altered in alter(state):
        count += 1
        try:
            accepts(altered)
        except UserError as error:
            assert len(str(error)) < 1000, what
            assert any(way in str(error) for way in ("use an earlier checkpoint", "--resume never")), what
        else:
            taken.append(what)
    assert not taken
    assert count >= fewest
    accepts(state)  # and nothing of the others was left behind


def test_loss_scaling_is_looked_at_too():
    own = torch.amp.GradScaler("cpu", enabled=True).state_dict()
    assert not list(wrong_scaler(own, own))
    for name in own:
        for bad in (None, "a", math.nan, math.inf, -1, True):
            assert list(wrong_scaler({**own, name: bad}, own)), (name, bad)
        assert list(wrong_scaler({key: value for key, value in own.items() if key != name}, own)), name
    assert list(wrong_scaler({**own, "scale": 0.0}, own))


def moments_of_another_shape(content: dict[str, Any]) -> None:
    entries = content["optimizer"]["state"][max(content["optimizer"]["state"])]
    entries["exp_avg"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (moments_of_another_shape, "exp_avg has the shape [2]"),
        (lambda content: content["state"].update(step=-5), "step is -5"),
        (lambda content: content["state"].update(phase=7), "in phase 8 of 3"),
        (lambda content: content["optimizer"]["state"].clear(), "knows nothing of"),
        (lambda content: content["state"].update(recent_losses=["x"]), "recent_losses is ['x']"),
        (lambda content: content["preprocessing"].update(image_size=64), "64 pixels"),
        (lambda content: content.update(resumed_from={"path": 3}), "resumed_from"),
    ],
)
def test_the_command_says_so_and_ends_with_2(state, images, command, capfd, alter, said):
    last = images.parent / "ckpt" / LAST
    whole = last.read_bytes()
    content = read_run(last)
    alter(content)
    torch.save(content, last)
    try:
        capfd.readouterr()
        code = command()
    finally:
        last.write_bytes(whole)
    err = capfd.readouterr().err
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err
    assert err.count("error: ") == 1
