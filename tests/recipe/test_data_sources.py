"""Training, checking and evaluating on tables and named data sets, by the commands as users run them."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import COLOURS, REPOSITORY, TINY, write_image
from tiny_datasets import idx

from sat_vg.backbone_finetuning.commands.check.cli import main as check
from sat_vg.backbone_finetuning.commands.evaluate.cli import main as evaluate

pytestmark = pytest.mark.recipe


@pytest.fixture
def table(class_folders: Path) -> Path:
    """The images of ``class_folders`` in a table, with its splits."""
    paths = sorted(path.relative_to(class_folders) for path in class_folders.rglob("*.*"))
    return write_table(class_folders / "images.csv", [(path, path.parts[1], path.parts[0]) for path in paths])


def write_table(path: Path, rows: list[tuple], head: tuple[str, ...] = ("path", "label", "split")) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))[1:]


def losses(run) -> list[float]:
    return [line["train_loss"] for line in run.lines]


def test_a_table_trains_as_the_same_class_folders_do(train_here, class_folders, table, tmp_path, capfd):
    by_table = train_here("--dataset_path", table, *TINY, folder="table")
    assert by_table.code == 0, by_table.err
    assert f"data: 36 images in 3 classes (table {str(table)!r}): 27 train, 9 val" in by_table.out
    by_folder = train_here("--dataset_path", class_folders, *TINY, folder="folder")
    assert losses(by_table) == losses(by_folder)
    assert by_table.epochs[-1]["val_accuracy"] == by_folder.epochs[-1]["val_accuracy"]

    # The same command finds the run finished; the order of lines and the place of the data set change nothing.
    write_table(table, list(reversed(rows_of(table))))
    moved = tmp_path / "moved"
    shutil.copytree(class_folders, moved)
    again = train_here("--dataset_path", moved / "images.csv", *TINY, folder="table")
    assert again.code == 0, again.err
    assert "has finished" in again.out
    swapped = [
        [path, {"sea": "town", "town": "sea"}.get(label, label), split] for path, label, split in rows_of(table)
    ]
    write_table(moved / "images.csv", swapped)
    refused = train_here("--dataset_path", moved / "images.csv", *TINY, folder="table")
    assert refused.code == 2
    assert "the images: their names, classes or splits are not those" in refused.err

    checkpoint = str(by_table.best_model)
    assert evaluate([checkpoint, "--out", f"{tmp_path}/own"]) == 0
    content = json.loads((tmp_path / "own/evaluation.json").read_text())
    assert content["accuracy"] == pytest.approx(max(line["val_accuracy"] for line in by_table.epochs))
    assert content["data"] == str(table)
    with (tmp_path / "own/predictions.csv").open(newline="") as file:
        assert {row["path"].split("/")[0] for row in csv.DictReader(file)} == {
            "val"
        }  # relative to the table's folder

    # Another table, with a test split and images elsewhere.
    (tmp_path / "lists").mkdir()
    rows = [
        (f"../images/{path}", label, "test" if split == "val" else split) for path, label, split in rows_of(table)
    ]
    other = write_table(tmp_path / "lists/other.csv", rows)
    given = [checkpoint, str(other), "--split", "test", "--out", f"{tmp_path}/other"]
    capfd.readouterr()
    assert evaluate(given) == 2
    assert "leads out of the list's folder. If you trust the list, add --allow_outside true" in capfd.readouterr().err
    assert evaluate([*given, "--allow_outside", "true"]) == 0
    assert json.loads((tmp_path / "other/evaluation.json").read_text())["accuracy"] == content["accuracy"]


def test_a_dry_run_and_a_check_of_a_table(train_here, table, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    drawn = write_table(table, [row[:2] for row in rows_of(table)], ("path", "label"))
    run = train_here("--dataset_path", drawn, "--dry_run")
    assert run.code == 0, run.err
    assert "split by seed 0: 30 train, 6 val" in run.out
    assert "dry run: nothing was trained" in run.out
    assert not (run.folder / "logs").exists()

    assert check([str(drawn)]) == 0
    assert "split by seed 0: 30 train, 6 val" in capfd.readouterr().out
    # The same pixels under two labels; named by their classes, also where an image has several.
    shutil.copy(table.parent / "train/sea/train_1.png", table.parent / "copy.png")
    rows = [(path, label) for path, label in rows_of(drawn)]
    write_table(table, [*rows, ("copy.png", "town|sea")], ("path", "labels"))
    assert check([str(table), "--json"]) == 2
    found = json.loads(capfd.readouterr().out)
    assert sorted(place["class"] for place in found["copies"][0]) == ["sea", "sea, town"]
    assert len(found["errors"]) == 1
    assert check([str(write_table(tmp_path / "images/out.csv", [("../x.png", "a")]))]) == 2
    assert "line 2: '../x.png' leads out of the list's folder" in capfd.readouterr().err


def test_an_image_with_several_classes_or_none(train_here, tmp_path):
    rows = []
    for number in range(24):
        labels = ("field", "sea|field", "", "town")[number % 4]
        colour = {"field": COLOURS["field"], "": (0, 0, 0)}.get(labels, COLOURS[labels.partition("|")[0] or "sea"])
        write_image(tmp_path / f"tiles/{number}.png", colour, number)
        rows.append((f"{number}.png", labels))
    table = write_table(tmp_path / "tiles/labels.csv", rows, ("path", "labels"))
    run = train_here("--dataset_path", table, "--num_epochs", 1, *TINY)
    assert run.code == 0, run.err
    assert "24 images in 3 classes" in run.out
    assert evaluate([str(run.best_model), "--out", f"{tmp_path}/evaluation"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(["train/sea/gone.png", "sea", "train"]), "line 38: 'train/sea/gone.png'"),
        (lambda rows: rows.append(["train/sea/train_0.jpg", "x", "train"]), "is in line"),
        (lambda rows: rows[3].__setitem__(2, "valid"), "line 5: there is no split 'valid', only train, val, test"),
        (lambda rows: rows[3].__setitem__(1, ""), "line 5: has no label. Fill it in"),
        (lambda rows: rows[-1].__setitem__(1, "\x1b[31mred"), r"train lacks: '\x1b[31mred' (line 37)"),
    ],
)
def test_errors_in_a_table_name_the_line(train_here, table, change, message):
    rows = rows_of(table)
    change(rows)
    write_table(table, rows)
    run = train_here("--dataset_path", table)
    assert run.code == 2
    assert message in run.err
    assert "Traceback" not in run.err
    assert "\x1b" not in run.err


def test_a_named_data_set(train_here, tmp_path, monkeypatch):
    idx(tmp_path / "copy", "MNIST", train=60, test=10)
    run = train_here("--dataset", "mnist", "--dataset_path", tmp_path / "copy", "--num_epochs", 1, *TINY)
    assert run.code == 0, run.err
    assert (
        "data: 70 images in 10 classes (MNIST), which has no val, so val is 20% of train by seed 0: 50 train"
        in run.out
    )
    monkeypatch.chdir(tmp_path)
    assert evaluate([str(run.best_model), "--split", "test"]) == 0
    content = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert content["images"] == 10
    assert content["data"] == "mnist"
    with (tmp_path / "evaluation/predictions.csv").open(newline="") as file:
        assert {Path(row["path"]).parent.name for row in csv.DictReader(file)} >= {"0 - zero"}
    # Evaluated on a folder, the name of the training's data set no longer counts.
    for name in ("0 - zero", "1 - one"):
        write_image(tmp_path / f"own/val/{name}/a.png", (0, 0, 0), 1)
        write_image(tmp_path / f"own/train/{name}/b.png", (0, 0, 0), 2)
    assert evaluate([str(run.best_model), f"{tmp_path}/own"]) == 0

    refused = train_here("--dataset", "mnist", "--dataset_path", tmp_path / "images.csv")
    assert refused.code == 2
    assert "is a table, but has to be the folder of a copy" in refused.err
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])  # where nobody listens
    lost = train_here("--dataset", "mnist")
    assert lost.code == 2
    assert "By hand: bring train-images-idx3-ubyte" in lost.err
    assert "Traceback" not in lost.err


def test_the_commands_of_the_docs(train_here, table, tmp_path):
    page = (REPOSITORY / "docs/data.md").read_text()
    for name in ("Forest", "SeaLake"):
        for number in range(6):
            write_image(
                tmp_path / f"cache/datasets/eurosat/eurosat/2750/{name}/{name}_{number}.jpg", (9, 99, 9), number
            )
    shutil.copytree(table.parent, tmp_path, dirs_exist_ok=True)
    begin = ("sat-vg train --dataset_path images.csv ", "sat-vg train --dataset eurosat ")
    shown = [line for line in page.splitlines() if line.startswith(begin)]
    assert len(shown) == 2
    for number, line in enumerate(shown):
        words = shlex.split(line)[2:]
        words[words.index("resnet50")] = "resnet18"  # the smaller one of the family
        run = train_here(*words, "--num_epochs", 1, folder=f"run{number}")
        assert run.code == 0, run.err
        assert "done: validation accuracy" in run.out
