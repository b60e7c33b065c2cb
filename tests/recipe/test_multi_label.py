"""Images with several classes or none, and two classes, through all commands: real tables, real runs."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, TINY
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, log_loss

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe

NAMES = tuple(COLOURS)
RESNET = ("--backbone", "resnet18")  # where something has to be learned
SETS = ("", "field", "field|sea", "field|sea|town", "sea", "sea|town", "town", "field|town")


def write_scene(path: Path, classes: set[str], seed: int) -> None:
    """A tile with a patch for each of its classes, at a place of its own, on bare ground."""
    pixels = np.empty((40, 40, 3))
    pixels[:] = (120, 90, 60)
    for place, name in enumerate(NAMES):
        if name in classes:
            pixels[:, 13 * place : 13 * place + 13] = COLOURS[name]
    pixels += np.random.default_rng(seed).normal(0, 12, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_table(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    return folder / "images.csv"


@pytest.fixture
def table(tmp_path) -> Path:
    """32 + 16 images whose classes, or none, are in a table."""
    rows = []
    for split, count in (("train", 32), ("val", 16)):
        for number in range(count):
            labels, name = SETS[number % len(SETS)], f"tiles/{split}_{number}.png"
            write_scene(tmp_path / "data" / name, set(labels.split("|")), 100 * (split == "val") + number)
            rows.append((name, labels, split))
    return write_table(tmp_path / "data", rows)


def truth_of(table: Path, split: str = "val") -> tuple[list[str], np.ndarray]:
    """Paths and multi-hot rows of a split, by path."""
    with table.open(newline="") as file:
        rows = sorted((row["path"], row["labels"]) for row in csv.DictReader(file) if row["split"] == split)
    return [path for path, _ in rows], np.array([[n in labels.split("|") for n in NAMES] for _, labels in rows])


def test_from_a_table_to_probabilities(train_here, command, table, tmp_path):
    run = train_here(*RESNET, "--dataset_path", table, "--num_epochs", 4, "--learning_rate", 1e-3,
                     "--label_smoothing", 0.1, "--mixup_alpha", 0.2, "--mixed_precision", "false",
                     draws=True)  # fmt: skip
    assert run.code == 0, run.err
    best = max(run.epochs, key=lambda line: (line["val_map"], -line["val_loss"]))
    assert {"val_loss", "val_accuracy", "macro_f1", "micro_f1"} <= best.keys()
    assert f"val_map {100 * best['val_map']:6.2f} %  micro_f1" in run.out
    assert f"done: validation mAP {100 * best['val_map']:.2f} % (epoch {best['epoch']})" in run.out
    for name in ("class_scores", "training_images", "learning_curves"):
        assert (run.folder / "logs" / f"{name}.png").stat().st_size > 5000
    assert not (run.folder / "logs/confusion_matrix.png").exists()
    content = torch.load(run.best_model, weights_only=True)
    assert content["task"] == "multi_label"
    assert content["config"]["early_stopping_metric"] == "val_map"
    assert content["metrics"]["val_map"] == best["val_map"]

    # The numbers are those of the saved weights, by scikit-learn.
    model = FineTuneModel.load_checkpoint(run.best_model)
    paths, truth = truth_of(table)
    geometry = model.preprocessing.geometry()
    images = torch.stack([geometry(decode_rgb(str(table.parent / path))) for path in paths])
    shares = model.predict_probabilities(model.preprocessing.normalise(images)).double()
    given = shares.numpy() >= 0.5
    assert best["val_map"] == pytest.approx(average_precision_score(truth, shares.numpy()), abs=1e-6)
    assert best["macro_f1"] == pytest.approx(f1_score(truth, given, average="macro", zero_division=0))
    assert best["micro_f1"] == pytest.approx(f1_score(truth, given, average="micro", zero_division=0))
    assert best["val_accuracy"] == (truth == given).all(1).mean()

    code, out, err = command("evaluate", run.best_model, "--out", "out")
    assert code == 0, err
    found = json.loads(Path("out/evaluation.json").read_text())
    assert (found["task"], found["images"], found["map"]) == ("multi_label", 16, best["val_map"])
    for name in ("loss", "accuracy"):
        assert found[name] == best[f"val_{name}"]
    assert (found["macro_f1"], found["micro_f1"]) == (best["macro_f1"], best["micro_f1"])
    low, high = found["intervals"]["map"]
    assert low < found["map"] <= high
    assert f"val: mAP {100 * found['map']:.2f} % ({100 * low:.2f} to {100 * high:.2f}) on 16 images" in out
    for name, place in zip(NAMES, range(3), strict=True):
        wanted = average_precision_score(truth[:, place], shares[:, place].numpy())
        assert found["classes"][name]["average_precision"] == pytest.approx(wanted, abs=1e-6)
        assert found["classes"][name]["images"] == truth[:, place].sum()
    page = Path("out/report.html").read_text()
    assert f"The checkpoint is from epoch {best['epoch']}, marked by the dashed line." in page
    with Path("out/predictions.csv").open(newline="") as file:
        lines = {line["path"]: line for line in csv.DictReader(file)}
    assert sorted(lines) == paths
    for path, row, share in zip(paths, truth, shares.tolist(), strict=True):
        assert lines[path]["true"] == "|".join(np.array(NAMES)[row])
        assert [float(lines[path][name]) for name in NAMES] == pytest.approx(share, abs=2e-6)
    wrong = {path for path, a, b in zip(paths, truth, given, strict=True) if (a != b).any()}
    assert {entry["path"] for entry in found["mistakes"]} <= wrong
    assert len(found["mistakes"]) == min(12, len(wrong))

    code, out, err = command("predict", run.best_model, table.parent / "tiles", "--json")
    assert code == 0, err
    answers = {Path(answer["path"]).name: answer["predictions"] for answer in map(json.loads, out.splitlines())}
    assert len(answers) == 48
    for path, share in zip(paths, shares.tolist(), strict=True):
        ranked = sorted(zip(NAMES, share, strict=True), key=lambda pair: -pair[1])
        listed = [pair for place, pair in enumerate(ranked) if place == 0 or pair[1] >= 0.5]
        answer = answers[Path(path).name]
        assert [each["class"] for each in answer] == [name for name, _ in listed]
        assert [each["given"] for each in answer] == [value >= 0.5 for _, value in listed]
    assert len({len(answer) for answer in answers.values()}) > 1


def test_predict_lists_what_is_likelier_than_not(command, tmp_path):
    model = FineTuneModel("resnet18", 7, pretrained=False, image_size=32, task="multi_label",
                          class_names=[*NAMES, "a", "b", "c", "d"])  # fmt: skip
    model.set_classifier(torch.zeros(7, 512), torch.tensor([2.0, -1, 1, 3, 4, 5, 6]))
    model.save_checkpoint(tmp_path / "m.pt")
    write_scene(tmp_path / "one.png", {"sea"}, 1)
    code, out, err = command("predict", "m.pt", "one.png")
    assert code == 0, err
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["99.8", "d"], ["99.3", "c"], ["98.2", "b"], ["95.3", "a"], ["88.1", "field"], ["73.1", "town"]
    ]  # fmt: skip


def test_a_likeliest_class_that_is_not_given_is_told_so(command, tmp_path):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, task="multi_label", class_names=NAMES)
    model.set_classifier(torch.zeros(3, 512), torch.tensor([-2.0, -1.0, -3.0]))
    model.save_checkpoint(tmp_path / "m.pt")
    write_scene(tmp_path / "one.png", {"sea"}, 1)
    code, out, _ = command("predict", "m.pt", "one.png")
    assert code == 0
    assert out.splitlines()[1] == " 26.9  (sea)    one.png"
    _, out, _ = command("predict", "m.pt", "one.png", "--json")
    assert json.loads(out)["predictions"] == [{"class": "sea", "probability": 0.268941, "given": False}]
    model.set_classifier(torch.zeros(3, 512), torch.tensor([2.0, 1.0, 3.0]))
    model.save_checkpoint(tmp_path / "m.pt")
    _, out, _ = command("predict", "m.pt", "one.png", "--json", "--top", 2, "--overlays", "looked_at")
    answer = json.loads(out)
    assert [(each["class"], each["given"]) for each in answer["predictions"]] == [("town", True), ("field", True)]
    assert Path(answer["overlay"]).stat().st_size > 5000


def test_probes_and_stored_features(train_here, table):
    run = train_here(*RESNET, "--dataset_path", table, "--strategy", "linear_probe")
    assert run.code == 0, run.err
    assert "exact linear probe on 32 images: L2 " in run.out
    assert " % mAP held out)" in run.out
    (epoch,) = run.epochs
    assert epoch["val_map"] > 0.8  # untrained features tell colours
    sgd = train_here(*RESNET, "--dataset_path", table, "--strategy", "linear_probe", "--probe_solver", "sgd",
                     "--num_epochs", 5, "--use_augmentation", "false", "--learning_rate", 0.05,
                     folder="sgd")  # fmt: skip
    assert sgd.code == 0, sgd.err
    assert "frozen stages run once, not 5 times" in sgd.out
    assert sgd.epochs[-1]["train_loss"] < sgd.epochs[0]["train_loss"]
    assert sgd.epochs[-1]["val_map"] > 0.8


def test_a_run_goes_on_and_notices_other_labels(train_here, table):
    rows = [(path, "town" if labels == "field|town" else labels, split)
            for path, labels, split in list(csv.reader(table.open(newline="")))[1:]]  # fmt: skip
    write_table(table.parent, rows)
    options = ("--dataset_path", table, "--save_every_steps", 4, "--max_checkpoints", 9, "--num_epochs", 2,
               "--class_weights", "balanced", "--cutmix_alpha", 0.5)  # fmt: skip
    whole = train_here(*options)
    assert whole.code == 0, whole.err
    lines = [{**line, "seconds": 0, "images_per_second": 0} for line in whole.lines]
    weights = torch.load(whole.best_model, weights_only=True)["state_dict"]
    again = train_here(*options, "--resume", whole.folder / "ckpt/step_00000004.pt")
    assert again.code == 0, again.err
    assert [{**line, "seconds": 0, "images_per_second": 0} for line in again.lines] == lines
    resumed = torch.load(again.best_model, weights_only=True)["state_dict"]
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())

    # Another combination in the place of one: the numbers of all labels stay the same.
    other = {"field|sea|town": "field|town"}
    write_table(table.parent, [(path, other.get(labels, labels), split) for path, labels, split in rows])
    changed = train_here(*options, "--resume", whole.folder / "ckpt/step_00000004.pt", folder="changed")
    assert changed.code == 2
    assert "the images: their names, classes or splits are not those" in changed.err


def test_what_best_means(train_here, class_folders, table):
    run = train_here("--dataset_path", table, "--num_epochs", 3, "--early_stopping_metric", "val_macro_f1")
    assert run.code == 0, run.err
    best = max(line["macro_f1"] for line in run.epochs)
    assert torch.load(run.best_model, weights_only=True)["metrics"]["macro_f1"] == best
    assert f"macro_f1 {100 * best:6.2f} %" in run.out
    run = train_here("--dataset_path", class_folders, "--early_stopping_metric", "val_map", folder="one")
    assert run.code == 2
    assert "early_stopping_metric = 'val_map': is for images that can have several classes" in run.err
    assert not run.best_model.exists()


def test_data_of_the_other_kind_are_refused(train_here, command, class_folders, table, tmp_path):
    several = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, class_names=NAMES, task="multi_label")
    several.save_checkpoint(tmp_path / "several.pt")
    single = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, class_names=NAMES)
    single.save_checkpoint(tmp_path / "single.pt")
    for arguments, message in (
        (("several.pt", class_folders), "the model gives an image any number of classes, and these images have one"),
        (("single.pt", table), "the model gives an image one class, and these images have any number of classes"),
    ):
        code, _, err = command("evaluate", *arguments)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
    # Some classes absent, in another order of labels: they go by name.
    rows = [(path, "|".join(set(labels.split("|")) & {"sea", "town"}), split)
            for path, labels, split in list(csv.reader(table.open(newline="")))[1:]]  # fmt: skip
    code, _, err = command("evaluate", "several.pt", write_table(table.parent, rows))
    assert code == 0, err
    found = json.loads(Path("evaluation/evaluation.json").read_text())
    assert [row["images"] for row in found["classes"].values()] == [0, 8, 8]


def test_a_temperature_for_all_classes_is_fitted_stored_and_used(train_here, command, table, tmp_path):
    # In fp32, as predict computes: a sure probe shows the rounding of bf16.
    run = train_here(
        *RESNET, "--dataset_path", table, "--strategy", "linear_probe", *TINY, "--mixed_precision", "false"
    )
    assert run.code == 0, run.err
    model = FineTuneModel.load_checkpoint(run.best_model)
    head = model.network.classifier[-1]
    model.set_classifier(head.weight / 8, head.bias / 8)  # so sure that predictions.csv would round shares to 0 and 1
    model.save_checkpoint(tmp_path / "several.pt", config=model.provenance["config"])
    with table.open(newline="") as file:
        rows = [(row["path"], row["labels"], row["split"]) for row in csv.DictReader(file)]
    wrong = {"tiles/val_0.png": "town"}  # a mistake to calibrate on, however well it was trained
    write_table(table.parent, [(path, wrong.get(path, labels), split) for path, labels, split in rows])
    code, _, err = command("evaluate", "several.pt", table, "--out", "raw")
    assert code == 0, err
    code, out, err = command("evaluate", "several.pt", table, "--calibrate", "c.pt", "--out", "fitted")
    assert code == 0, err
    raw, fitted = (json.loads(Path(f"{name}/evaluation.json").read_text()) for name in ("raw", "fitted"))
    found = fitted["calibration"]
    temperature = found["temperature"]
    assert abs(temperature - 1) > 0.05
    assert f"written: c.pt, which is several.pt with a temperature of {temperature:.3f}" in out
    assert f"at temperature {temperature:.3f}" in out
    assert f"without the temperature: calibration error {100 * raw['ece']:.2f} %" in out
    assert (raw["ece"], raw["calibration"]["nll"]) == (found["uncalibrated_ece"], found["uncalibrated_nll"])
    assert found["nll"] < found["uncalibrated_nll"] == pytest.approx(raw["loss"], rel=1e-5)
    assert sum(row["images"] for row in found["bins"]) == 3 * 16
    kept = ("map", "accuracy", "macro_f1", "micro_f1", "loss", "classes", "intervals")
    assert all(raw[name] == fitted[name] for name in kept)

    # The numbers are those of the stored logits, by scikit-learn; the copy carries the temperature to all commands.
    paths, truth = truth_of(table)
    with Path("raw/predictions.csv").open(newline="") as file:
        lines = {line["path"]: line for line in csv.DictReader(file)}
    shares = np.array([[float(lines[path][name]) for name in NAMES] for path in paths])
    calibrated = 1 / (1 + np.exp(-np.log(shares / (1 - shares)) / temperature))
    assert found["nll"] == pytest.approx(log_loss(truth.ravel(), calibrated.ravel()), rel=1e-3)
    assert FineTuneModel.load_checkpoint(tmp_path / "c.pt").temperature == temperature
    place = paths.index("tiles/val_3.png")  # has all classes
    code, out, err = command("predict", "c.pt", table.parent / paths[place], "--json")
    assert code == 0, err
    answers = {each["class"]: each["probability"] for each in json.loads(out)["predictions"]}
    assert answers == pytest.approx(
        {name: share for name, share in zip(NAMES, calibrated[place], strict=True) if name in answers}, abs=1e-3
    )
    assert any(abs(answers[name] - shares[place][NAMES.index(name)]) > 0.01 for name in answers)
    for folder in ("raw", "fitted"):
        assert Path(folder, "reliability.png").stat().st_size > 5000
    page = Path("fitted/report.html").read_text()
    assert f"<dt>temperature</dt><dd>{temperature:.4g}</dd>" in page
    assert "these images, so this error is optimistic" in page


def test_features_of_such_a_model_are_extracted(command, table, tmp_path):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, class_names=NAMES, task="multi_label")
    model.save_checkpoint(tmp_path / "several.pt")
    code, _, err = command("extract", "several.pt", table, "--out", "f.npz")
    assert code == 0, err
    with np.load("f.npz") as data:
        assert data["pooled"].shape == (48, 512)
        names = data["class_names"].tolist()
        assert names == sorted({", ".join(sorted(labels.split("|"))) or "(none)" for labels in SETS})
        assert [names[label] for label in data["labels"][:4]] == ["(none)", "field", "field, sea", "field, sea, town"]


def test_two_classes(train_here, command, class_folders):
    for split in ("train", "val"):
        shutil.rmtree(class_folders / split / "town")
    run = train_here(*RESNET, "--dataset_path", class_folders, "--strategy", "linear_probe")
    assert run.code == 0, run.err
    content = torch.load(run.best_model, weights_only=True)
    assert content["task"] == "single_label"
    assert content["class_names"] == ["field", "sea"]
    # Unset and what it means are the same: a run from before it could be left out goes on.
    assert content["config"]["early_stopping_metric"] == "val_accuracy"
    again = train_here(*RESNET, "--dataset_path", class_folders, "--strategy", "linear_probe",
                       "--early_stopping_metric", "val_accuracy")  # fmt: skip
    assert again.code == 0, again.err
    assert "has finished" in again.out
    code, out, err = command("evaluate", run.best_model)
    assert code == 0, err
    found = json.loads(Path("evaluation/evaluation.json").read_text())
    assert list(found["classes"]) == ["field", "sea"]
    assert all(set(row) == {"precision", "recall", "f1", "images"} for row in found["classes"].values())
    shown = [line.split() for line in out.splitlines()]
    for name, row in found["classes"].items():
        assert [name, *(f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")), "3"] in shown
    code, out, err = command("predict", run.best_model, class_folders / "val", "--json")
    assert code == 0, err
    for answer in map(json.loads, out.splitlines()):
        assert sum(each["probability"] for each in answer["predictions"]) == pytest.approx(1, abs=2e-6)
        assert "given" not in answer["predictions"][0]


@pytest.mark.slow  # two trainings in processes of their own
def test_a_comparison_goes_by_mean_average_precision(command, table):
    wanted = [
        "compare", "--backbones", "custom_cnn", "--strategies", "linear_probe,full", "--seeds", "0",
        "--dataset_path", table, "--out", "compared", "--", "--pretrained", "false", "--image_size", "32",
        "--num_epochs", "2", "--warmup_epochs", "0", "--num_workers", "0",
    ]  # fmt: skip
    code, out, err = command(*wanted)
    assert code == 0, err
    out_folder = Path("compared")
    content = json.loads((out_folder / "comparison.json").read_text())
    maps = [row["maps"][0] for row in content["rows"]]
    assert len(maps) == 2
    assert maps == sorted(maps, reverse=True)
    for cell in content["cells"]:
        folder = Path(cell["settings"]["log_dir"])
        best = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert cell["result"]["map"] == max(line["val_map"] for line in best if "val_map" in line)
    assert content["notes"][0].startswith(
        "mAP: the mean of the classes' average precisions. mAP and macro F1 of best"
    )
    assert f"{100 * maps[0]:.2f} % validation mAP" in content["recommendation"]
    assert f"\n  mAP {100 * maps[0]:.2f} %, macro F1" in out
    names = {path.name for path in out_folder.glob("*.png")}
    assert names == {"map.png"}
    assert "Validation mAP: bars are means over seeds" in (out_folder / "comparison.html").read_text()

    # Cells from before, of which the comparison knew the accuracy only: the trainings themselves say the rest.
    for path in out_folder.glob("cells/*/cell.json"):
        record = json.loads(path.read_text())
        del record["result"]["map"]
        path.write_text(json.dumps(record))
    code, out, err = command(*wanted)
    assert code == 0, err
    assert out.count("trained before") == 2
    again = json.loads((out_folder / "comparison.json").read_text())
    assert [row["maps"][0] for row in again["rows"]] == pytest.approx(maps)
