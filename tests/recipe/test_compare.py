"""``sat-vg compare``: every cell a real training, gone on with after a kill, ranked, and written in all formats."""

import csv
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from conftest import COLOURS, REPOSITORY, SHARED, environment, write_image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_here import TrainingHere

from sat_vg.backbone_finetuning.commands.compare import cli as compare
from sat_vg.backbone_finetuning.commands.compare import run as comparison
from sat_vg.backbone_finetuning.commands.compare.cells import Cell
from sat_vg.backbone_finetuning.commands.compare.results import measure_costs
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.evaluation.costs import Timing

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

TINY = [
    "--pretrained",
    "false",
    "--image_size",
    "32",
    "--batch_size",
    "6",
    "--num_epochs",
    "2",
    "--warmup_epochs",
    "0",
]
GRID = ["--backbones", "custom_cnn", "--strategies", "linear_probe,full", "--seeds", "0,1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders that are split by seed."""
    root = tmp_path_factory.mktemp("compare") / "images"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(10):
            write_image(root / name / f"{index}.png", colour, 100 * number + index)
    return root


@pytest.fixture(scope="module")
def out(images: Path) -> Path:
    """A finished comparison: one backbone, two strategies, two seeds; what it said lies beside it.

    Its trainings run in this process; test_first_hour.py and the slow tests here start one for each.
    """
    folder, said = images.parent / "out", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        for name, value in environment(images.parent).items():
            patch.setenv(name, value)
        patch.setattr(comparison, "TrainingProcess", TrainingHere)
        code = compare.main(flags(images, folder))
    assert code == 0, said.getvalue()
    (images.parent / "stdout.txt").write_text(said.getvalue())
    return folder


def flags(images: Path, folder: Path, *more: str, settings: list[str] = TINY) -> list[str]:
    return [str(images), *GRID, "--out", str(folder), *more, "--", *settings]


def command(images: Path, folder: Path, *more: str, settings: list[str]) -> list[str]:
    own = flags(images, folder, *more, settings=settings)
    return [sys.executable, "-m", "sat_vg", "compare", *own]


@pytest.fixture
def here(images, monkeypatch, capfd):
    """Run the command in this process."""

    def run(*arguments: str) -> tuple[int, str, str]:
        for name, value in environment(images.parent).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(images.parent)
        capfd.readouterr()
        code = compare.main(list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def results(folder: Path) -> dict:
    return json.loads((folder / "comparison.json").read_text())


def test_every_cell_is_a_training_of_its_own(images, out):
    found = results(out)
    assert {row["strategy"] for row in found["rows"]} == {"linear_probe", "full"}
    assert [row["seeds"] for row in found["rows"]] == [[0, 1], [0, 1]]
    assert len(found["cells"]) == 4
    for folder in sorted((out / "cells").iterdir()):
        record = json.loads((folder / "cell.json").read_text())
        lines = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
        epochs = [line for line in lines if "val_accuracy" in line]
        result = record["result"]
        assert result["accuracy"] == max(epoch["val_accuracy"] for epoch in epochs)
        assert result["training_seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in epochs))
        assert result["epochs"] == len(epochs) == (1 if "linear_probe" in folder.name else 2)
        assert result["peak_gib"] == 0.5
        assert 0 < result["macro_f1"] <= 1
        assert result["val_images"] == 6
        assert FinetuneConfig.from_yaml(folder / "config.yaml").to_dict() == record["settings"]
        assert record["settings"]["num_epochs"] == 2


def test_cells_of_a_seed_share_their_split(out):
    data = {}
    for folder in (out / "cells").iterdir():
        record = json.loads((folder / "cell.json").read_text())
        data.setdefault(record["settings"]["seed"], set()).add(record["result"]["data"])
    assert {len(found) for found in data.values()} == {1}
    assert len(set.union(*data.values())) == 2, "another seed draws another split"
    assert "The seed draws the 6 validation images (20 % of each class)" in (out / "comparison.md").read_text()


def test_the_results_are_written_in_all_formats(images, out):
    said = (images.parent / "stdout.txt").read_text()
    assert "[1/4] custom_cnn linear_probe seed 0\n" in said
    assert "Recommended: custom_cnn " in said
    row = results(out)["rows"][0]
    with (out / "comparison.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["accuracy_mean"]) == pytest.approx(sum(row["accuracies"]) / 2)
    assert int(first["parameters"]) == row["parameters"] > 10_000
    assert int(first["flops"]) > 1_000_000
    assert float(first["images_per_second"]) > 1
    page = (out / "comparison.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 1
    assert str(images.parent) not in page, "no paths of this machine"
    links = re.findall(r'href="([^#"][^"]*)"', page)
    assert len(links) == 4
    assert all((out / unquote(link)).is_file() for link in links)
    assert (out / "accuracy.png").stat().st_size > 5000
    assert (out / "accuracy.svg").read_bytes().startswith(b"<?xml")
    assert not list(out.glob("*.tex"))


def test_both_losses_and_their_gap_are_those_of_the_best_epoch(images, out):
    content = json.loads((out / "comparison.json").read_text())
    assert len(content["cells"]) == 4
    table = (out / "comparison.csv").read_text().splitlines()
    header = table[0].split(",")
    for line, row in zip(table[1:], content["rows"], strict=True):
        found = dict(zip(header, line.split(","), strict=True))
        cells = [
            c["result"] for c in content["cells"]
            if (c["settings"]["backbone"], c["settings"]["strategy"]) == (row["backbone"], row["strategy"])
        ]  # fmt: skip
        mean = sum(c["val_loss"] for c in cells) / len(cells)
        assert float(found["val_loss_mean"]) == pytest.approx(mean)
        if row["strategy"] == "linear_probe":  # solved, so there is no training loss
            assert found["train_loss_mean"] == found["gap"] == ""
        else:
            assert float(found["gap"]) == pytest.approx(mean - float(found["train_loss_mean"]))


def test_cells_are_in_tensorboards_table_of_hyperparameters(out):
    runs = sorted(path for path in (out / "tensorboard").iterdir() if path.is_dir())
    assert len(runs) == 4
    for run in runs:
        events = EventAccumulator(str(run))
        events.Reload()
        record = json.loads((out / "cells" / run.name / "cell.json").read_text())
        assert events.Scalars("hparam/accuracy")[0].value == pytest.approx(record["result"]["accuracy"])
        assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_finished_cells_are_not_trained_again(images, out, here):
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.*") if path.is_file()}
    costs = (out / "costs.json").read_bytes()
    code, said, err = here(*flags(images, out, "--max_params", "1k"))
    assert code == 0, err
    assert said.count("trained before") == 4
    assert "Nothing is recommended: no backbone has at most 0.001 M parameters." in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "costs.json").read_bytes() == costs
    code, said, err = here(*flags(images, out, "--dry_run"))
    assert code == 0, err
    assert said.count("done: ") == 4


@pytest.mark.parametrize(
    "damage",
    [dict.clear, lambda costs: costs.popitem(), lambda costs: next(iter(costs.values())).update(flops="many")],
)
def test_damaged_costs_are_measured_anew(out, damage):
    """They are read back where nothing has to be measured; a file that was altered gave a traceback."""
    folders = sorted((out / "cells").iterdir())
    cells = [
        SimpleNamespace(cell=Cell(FinetuneConfig.from_yaml(folder / "config.yaml"), folder)) for folder in folders
    ]
    timing = Timing(batch_size=2, rounds=1, seconds=0.01)
    record = out.parent / "costs.json"
    found = measure_costs(record, cells, timing)
    content = json.loads(record.read_text())
    damage(content["costs"])
    record.write_text(json.dumps(content))
    again = measure_costs(record, cells, timing)
    assert {key: (one.parameters, one.flops) for key, one in again.items()} == {
        key: (one.parameters, one.flops) for key, one in found.items()
    }
    assert json.loads(record.read_text())["costs"] == {key: asdict(one) for key, one in again.items()}


@pytest.mark.slow
def test_a_failing_cell_does_not_end_the_others(images, out, here):
    broken = images.parent / "broken.pth"
    broken.write_bytes(b"no weights")
    only = ["--backbones", "resnet18,custom_cnn", "--strategies", "linear_probe", "--seeds", "0"]
    paths = [str(images), "--out", str(out), "--weights", f"resnet18={broken}"]
    settings = [part for part in TINY if part not in ("--pretrained", "false")]
    code, said, err = here(*only, *paths, "--", *settings, "--pretrained", "true")
    assert code == 2, "custom_cnn was trained with other settings"
    assert "custom_cnn linear_probe seed 0: pretrained: was False, now True" in err
    assert "--anew" in err
    recipe = images.parent / "recipe.yaml"
    recipe.write_text("settings_by_backbone:\n  resnet18: {pretrained: true}\nsettings: {pretrained: false}\n")
    code, said, err = here(*only, *paths, "--recipe", str(recipe), "--", *settings)
    assert code == 1, err
    assert "[2/2] custom_cnn linear_probe seed 0: accuracy" in said
    assert "1 of 2 trainings failed" in err
    assert "broken.pth" in err
    found = results(out)
    assert [failure["cell"] for failure in found["failures"]] == ["resnet18 linear_probe seed 0"]
    assert "(exit code 2)" in found["failures"][0]["reason"]
    assert len(found["rows"]) == 1
    assert "resnet18 linear_probe seed 0" in (out / "comparison.html").read_text()


def test_other_settings_or_images_are_refused(images, out, here):
    code, _, err = here(*flags(images, out, settings=[*TINY, "--learning_rate", "0.01"]))
    assert code == 2
    assert "4 of 4 cells in" in err
    assert "learning_rate: was 0.0003, now 0.01" in err
    assert "Put --learning_rate 0.0003 behind -- to go on with them; or use another --out, or --anew true to" in err
    extra = images / "sea" / "extra.png"
    write_image(extra, COLOURS["sea"], 999)
    code, _, err = here(*flags(images, out))
    extra.unlink()
    assert code == 2
    assert "the images have changed" in err


def test_defaults_of_another_version_are_named_as_flags(images, out, here, tmp_path):
    """The cells were trained with other defaults; where flags for all cells cannot say that, none are named."""
    old = tmp_path / "old"
    for folder in (out / "cells").iterdir():
        (old / "cells" / folder.name).mkdir(parents=True)
        config = FinetuneConfig.from_yaml(folder / "config.yaml").replace(weight_decay=0.05, label_smoothing=0.05)
        config.to_yaml(old / "cells" / folder.name / "config.yaml")
    code, _, err = here(*flags(images, old))
    assert code == 2
    found = re.search("\nPut (--.*) behind -- to go on with them", err)
    assert found, err
    assert here(*flags(images, old, "--dry_run", settings=[*TINY, *shlex.split(found[1])]))[1].count("begun") == 0
    config.replace(weight_decay=0.1).to_yaml(old / "cells" / folder.name / "config.yaml")
    code, _, err = here(*flags(images, old))
    assert code == 2
    assert "behind --" not in err
    assert "Use another --out, or --anew true to move them aside" in err


def test_a_dry_run_finds_broken_images(images, tmp_path, here):
    broken = images / "sea" / "broken.png"
    broken.write_bytes(b"no image")
    try:
        code, _, err = here(*flags(images, tmp_path / "out", "--dry_run"))
    finally:
        broken.unlink()
    assert code == 2
    assert "broken.png" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "resnet8"], "backbone = 'resnet8': unknown; did you mean"),
        (["--backbones", "resnet18,microsoft/resnet-18"], "are the same network"),
        (["--strategies", "half"], "strategy = 'half': must be full or"),
        (["--seeds", "0,0"], "0 is there more than once"),
        (["--backbones", ""], "--backbones : must be a list of texts that are not empty, with commas between"),
        (["--weights", "resnet50=x.pth"], "'resnet50' is none of the backbones custom_cnn"),
        (["--weights", "custom_cnn=x.pth"], "there is no file 'x.pth'"),
        (["--recipe", "none.yaml"], "the recipe 'none.yaml' cannot be read"),
        ([], "nowhere"),
    ],
)
def test_what_cannot_be_compared(images, tmp_path, here, arguments, message):
    data = Path("nowhere") if message == "nowhere" else images
    code, _, err = here(*flags(data, tmp_path / "out", *arguments))
    assert code == 2, err
    assert message in err
    assert not (tmp_path / "out/cells").exists()


def test_two_comparisons_in_one_folder(images, out, here):
    from sat_vg.backbone_finetuning.utils.folder_lock import lock_folder

    with lock_folder(out):
        code, _, err = here(*flags(images, out))
    assert code == 2
    assert "in use by another run" in err
    assert "choose another --out" in err


def test_the_shown_commands(images, tmp_path, here):
    """Each command of the docs plans what it says; training so much is the matter of the slow test below."""
    page = (REPOSITORY / "docs/comparing.md").read_text()
    shown = [line for line in page.replace("\\\n", " ").splitlines() if line.startswith("sat-vg compare")]
    assert len(shown) >= 3
    for name in ("mobilenet_v2-imagenet.pth", "squeezenet1_1-imagenet.pth"):
        (images.parent / name).touch()
    if not (images.parent / "configs").exists():
        (images.parent / "configs").symlink_to(REPOSITORY / "configs")
    given = {"DIR": str(images), "UCMerced": str(images), "OUT": str(tmp_path)}
    for line in shown:
        words = [given.get(word, word) for word in shlex.split(line)]
        code, said, err = here("--dry_run", *words[2:])
        assert code == 0, (line, err)
        assert "dry run: nothing was trained" in said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_comparison_goes_on(images, tmp_path, number, code):
    """Stopped in the second cell, by a signal to the comparison alone; the cell goes on where it was."""
    env = environment(images.parent)
    long = [*TINY, "--num_epochs", "15", "--early_stopping_patience", "0"]
    arguments = command(images, tmp_path / "out", "--seeds", "0", settings=long)
    process = subprocess.Popen(
        arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = tmp_path / "out/cells/custom_cnn-full-seed0/logs/metrics.jsonl"
    wait_for(lambda: log.exists() and '"val_accuracy"' in log.read_text(), process)
    process.send_signal(number)
    said, err = process.communicate(timeout=120)
    assert process.returncode == code, (said, err)
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert (tmp_path / "out/cells/custom_cnn-linear_probe-seed0/cell.json").exists(), said
    assert not (tmp_path / "out/cells/custom_cnn-full-seed0/cell.json").exists()
    assert (tmp_path / "out/cells/custom_cnn-full-seed0/checkpoints/last.pt").exists()
    again = subprocess.run(arguments, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "[1/2] custom_cnn linear_probe seed 0: accuracy" in again.stdout
    assert "  going on with" in again.stdout
    epochs = [line["epoch"] for line in map(json.loads, log.read_text().splitlines()) if "val_accuracy" in line]
    assert epochs == list(range(1, 16)), "no epoch twice, none missing"


@pytest.mark.slow
def test_a_killed_comparison_waits_for_the_training_it_left(images, tmp_path):
    env = environment(images.parent)
    long = [*TINY, "--num_epochs", "30", "--early_stopping_patience", "0"]
    few = ["--strategies", "full", "--seeds", "0"]
    arguments = command(images, tmp_path / "out", *few, settings=long)
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cell = tmp_path / "out/cells/custom_cnn-full-seed0"
    log = cell / "logs/metrics.jsonl"
    wait_for(lambda: log.exists() and '"val_accuracy"' in log.read_text(), process)
    process.kill()
    process.wait()
    again = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    result = json.loads((cell / "cell.json").read_text())["result"]
    assert result["epochs"] == 30
    if "still runs this training; waiting" in again.stdout:
        assert result["peak_gib"] is None, "its memory was seen by nobody"


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_the_recipe_on_real_images(images, tmp_path):
    """The shown recipe on some real images and the real weights, at a size that is done in minutes."""
    weights = {name: SHARED / f"weights/{name}-imagenet.pth" for name in ("mobilenet_v2", "squeezenet1_1")}
    missing = [str(path) for path in weights.values() if not path.exists()]
    if missing:
        pytest.skip(f"real ImageNet weights are not at hand: no {', '.join(missing)}")
    given = ",".join(f"{name}={path}" for name, path in weights.items())
    recipe = REPOSITORY / "configs/compare/ucmerced.yaml"
    own = [str(images), "--recipe", str(recipe), "--seeds", "0", "--out", str(tmp_path / "out")]
    quick = ["--", "--image_size", "64", "--num_epochs", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "sat_vg", "compare", *own, "--weights", given, *quick],
        capture_output=True, text=True, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path / "out")["rows"]) == 6
