"""``sat-vg evaluate``: its numbers are those of the training, and of scikit-learn."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY, write_image
from forks import save_blank
from matplotlib.figure import Figure
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from sat_vg.backbone_finetuning.commands.evaluate import cli as evaluate
from sat_vg.backbone_finetuning.commands.evaluate.cli import EvaluateOptions
from sat_vg.backbone_finetuning.commands.evaluate.run import tell_of_seen_images
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe

FILES = ("report.html", "evaluation.json", "predictions.csv", "confusion_matrix.png", "class_scores.png",
         "reliability.png")  # fmt: skip


@pytest.fixture
def simple(class_folders, tmp_path, monkeypatch):
    """A checkpoint that no training has made, by the nearest mean of random features; train has wrong labels.

    Figures are blank, as drawing takes most of the time of so small an evaluation.
    """
    monkeypatch.setattr(Figure, "savefig", save_blank)
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, class_names=("field", "sea", "town"))
    paths = [sorted((class_folders / "val" / name).iterdir()) for name in model.class_names]
    images = torch.stack([model.preprocessing.geometry()(decode_rgb(path)) for some in paths for path in some])
    with torch.no_grad():
        features = model.eval().forward_pooled(model.preprocessing.normalise(images))
    features = features.view(3, 3, -1).mean(1)
    model.set_classifier(features, -features.square().sum(1) / 2)
    # In fp32: in bf16 the kernels that a processor has, and the memory format, would decide about the third digit.
    settings = {"dataset_path": str(class_folders), "mixed_precision": False}
    model.save_checkpoint(tmp_path / "simple.pt", config=settings)
    for place in (0, 4, 8):
        (class_folders / f"train/sea/train_{place}.jpg").rename(class_folders / f"train/town/sea_{place}.jpg")
    return tmp_path / "simple.pt"


def evaluation(tmp_path, capfd, *arguments):
    capfd.readouterr()
    code = evaluate.main([*map(str, arguments), "--out", str(tmp_path / "out")])
    out, err = capfd.readouterr()
    content = json.loads((tmp_path / "out/evaluation.json").read_text()) if code == 0 else None
    return code, out, err, content


def table_in(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_numbers_are_those_of_the_best_epoch_to_the_bit(class_folders, train_here, tmp_path, capfd):
    run = train_here("--dataset_path", class_folders, "--num_epochs", 3, "--early_stopping_metric", "val_loss")
    assert run.code == 0, run.err
    code, out, err, found = evaluation(tmp_path, capfd, run.best_model)
    assert code == 0, err
    best = min(run.epochs, key=lambda line: line["val_loss"])
    assert found["accuracy"] == best["val_accuracy"]
    assert found["loss"] == best["val_loss"]
    assert f"val: accuracy {100 * best['val_accuracy']:.2f} % (" in out
    assert ") of 9 images" in out
    for name in FILES:
        assert (tmp_path / "out" / name).stat().st_size > 300, name
    page = (tmp_path / "out/report.html").read_text()
    assert f"The checkpoint is from epoch {best['epoch']}, marked by the dashed line." in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "top_5_accuracy" not in found

    # Where another training has written its log in the same place since, its curves are not shown.
    log = run.folder / "logs/metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    others = [line | {"val_loss": 9.9} if "val_loss" in line else line for line in lines]
    for text, reason in (
        ("".join(json.dumps(line) + "\n" for line in others), "is the log of another training"),
        ("{" * 5000 + "\n[1]\nnull\n\x00", "is the log of another training"),
        (None, "there is no"),
    ):
        log.unlink() if text is None else log.write_text(text)
        code, _, err, _ = evaluation(tmp_path, capfd, run.best_model)
        assert code == 0, err
        page = (tmp_path / "out/report.html").read_text()
        assert "There are no curves: " in page
        assert reason in page


def test_they_are_those_of_scikit_learn(simple, class_folders, tmp_path, capfd):
    _, _, _, found = evaluation(tmp_path, capfd, simple, "--split", "train")
    assert found["split"] == "train"
    model = FineTuneModel.load_checkpoint(simple)
    paths = sorted((class_folders / "train").rglob("*.*"))
    truth = [model.class_names.index(path.parent.name) for path in paths]
    geometry = model.preprocessing.geometry()
    images = torch.stack([geometry(decode_rgb(str(path))) for path in paths])
    with torch.no_grad():
        logits = model(model.preprocessing.normalise(images))
    predicted, shares = logits.argmax(1).tolist(), logits.double().softmax(1)
    assert found["images"] == len(paths) == 27
    assert 3 <= sum(a != b for a, b in zip(truth, predicted, strict=True)) < 12
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=range(3)).tolist()
    assert found["confusion_normalised"] == confusion_matrix(truth, predicted, normalize="true").tolist()
    assert found["accuracy"] == accuracy_score(truth, predicted)
    assert found["loss"] == pytest.approx(log_loss(truth, shares), rel=1e-5)
    assert found["calibration"]["nll"] == pytest.approx(log_loss(truth, shares), rel=1e-5)
    for name, average in (("macro", "macro"), ("weighted", "weighted")):
        theirs = precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
        assert list(found["averages"][name].values()) == pytest.approx(theirs[:3], abs=1e-12)
    assert found["macro_f1"] == found["averages"]["macro"]["f1"]

    table = table_in(tmp_path / "out")
    assert [line["path"] for line in table] == [str(path.relative_to(class_folders)) for path in paths]
    assert [line["true"] for line in table] == [path.parent.name for path in paths]
    assert [line["predicted"] for line in table] == [model.class_names[label] for label in predicted]
    assert [float(line["probability"]) for line in table] == pytest.approx(shares.amax(1).tolist(), abs=1e-5)
    assert [line["correct"] for line in table] == [str(a == b).lower() for a, b in zip(truth, predicted, strict=True)]
    for line in table:
        assert sum(float(line[name]) for name in ("probability", "probability_2", "probability_3")) == pytest.approx(
            1, abs=2e-6
        )
    wrong = [line for line in table if line["correct"] == "false"]
    assert sorted(entry["path"] for entry in found["mistakes"]) == [line["path"] for line in wrong]
    shown = [entry["probability"] for entry in found["mistakes"]]
    assert shown == sorted(shown, reverse=True)


def test_top_5_where_there_are_more_classes(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    names = tuple(f"class {number}" for number in range(8))
    for number, name in enumerate(names):
        for split, count in (("train", 1), ("val", 2), ("test", 3)):
            for index in range(count):
                colour = (30 * number, 200 - 20 * number, 77)
                write_image(tmp_path / "many" / split / name / f"{index}.png", colour, 10 * number + index)
    model = FineTuneModel("resnet18", 8, pretrained=False, image_size=32, class_names=names)
    model.save_checkpoint(tmp_path / "m.pt")
    code, out, err, found = evaluation(tmp_path, capfd, tmp_path / "m.pt", tmp_path / "many", "--split", "test")
    assert code == 0, err
    assert (found["split"], found["images"]) == ("test", 24)
    table = table_in(tmp_path / "out")
    assert found["top_5_accuracy"] == sum(line["in_top_5"] == "true" for line in table) / 24
    assert 0 < found["top_5_accuracy"] < 1
    assert f"top 5 {100 * found['top_5_accuracy']:.2f} %" in out
    ranks = [[line["predicted"], *(line[f"class_{rank}"] for rank in range(2, 6))] for line in table]
    scores = [[-row.index(name) if name in row else -9 for name in names] for row in ranks]
    truth = [names.index(line["true"]) for line in table]
    assert found["top_5_accuracy"] == top_k_accuracy_score(truth, scores, k=5, labels=range(8))


def test_calibration_writes_a_copy_that_differs_by_its_temperature(simple, tmp_path, capfd):
    target = tmp_path / "new" / "calibrated.pt"
    before = simple.read_bytes()
    code, out, err, found = evaluation(tmp_path, capfd, simple, "--split", "train", "--calibrate", target)
    assert code == 0, err
    temperature = found["calibration"]["temperature"]
    assert temperature != 1
    assert f"{target}, which is {simple} with a temperature of {temperature:.3f}" in out
    assert simple.read_bytes() == before
    old, new = (torch.load(path, weights_only=True) for path in (simple, target))
    assert old.pop("temperature") == 1
    assert new.pop("temperature") == temperature
    one, other = old.pop("state_dict"), new.pop("state_dict")
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    assert old == new
    assert found["calibration"]["nll"] < found["calibration"]["uncalibrated_nll"]

    _, _, _, raw = evaluation(tmp_path, capfd, simple, "--split", "train")
    plain = table_in(tmp_path / "out")
    _, _, _, again = evaluation(tmp_path, capfd, target, "--split", "train")
    for name in ("accuracy", "loss", "confusion", "classes"):
        assert again[name] == raw[name] == found[name]
    assert raw["calibration"]["temperature"] == 1
    assert raw["ece"] == raw["calibration"]["uncalibrated_ece"] == again["calibration"]["uncalibrated_ece"]
    assert (again["ece"], again["calibration"]["bins"]) == (found["ece"], found["calibration"]["bins"])
    scaled = table_in(tmp_path / "out")
    assert [line["predicted"] for line in scaled] == [line["predicted"] for line in plain]
    assert [line["probability"] for line in scaled] != [line["probability"] for line in plain]

    code, _, err, _ = evaluation(tmp_path, capfd, simple, "--calibrate", tmp_path / "none.pt")
    assert code == 2
    assert "all 9 predictions are right" in err
    assert not (tmp_path / "none.pt").exists()

    code, _, err, _ = evaluation(tmp_path, capfd, simple, "--split", "train", "--calibrate", simple)
    assert code == 0, err
    assert FineTuneModel.load_checkpoint(simple).temperature == temperature


def test_views_and_checkpoints_are_averaged(simple, class_folders, tmp_path, capfd):
    model = FineTuneModel.load_checkpoint(simple)
    model.temperature = 40.0
    model.save_checkpoint(tmp_path / "other.pt", config=model.provenance["config"] | {"seed": 7})
    code, out, err, content = evaluation(tmp_path, capfd, simple, "--views", 8, "--ensemble", tmp_path / "other.pt")
    assert code == 0, err
    rows = table_in(tmp_path / "out")
    expected, alone = [], 0
    first = FineTuneModel.load_checkpoint(simple)
    for row in rows:
        pixels = model.preprocessing.geometry()(decode_rgb(class_folders / row["path"]))[None]
        values = model.preprocessing.normalise(pixels)
        shares = torch.stack([each.predict_probabilities(values, views=8) for each in (first, model)]).mean(0)[0]
        expected.append(float(shares.max()))
        assert row["predicted"] == model.class_names[int(shares.argmax())]
        alone += model.class_names[int(first.predict_probabilities(values)[0].argmax())] == row["true"]
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected, abs=2e-4)
    averaged = content["averaged"]
    assert (averaged["views"], averaged["passes"]) == (8, 16)
    assert averaged["checkpoints"] == [str(simple), str(tmp_path / "other.pt")]
    assert averaged["gflops"] == pytest.approx(16 * averaged["alone"]["gflops"])
    assert averaged["alone"]["accuracy"] == alone / 9
    assert content["accuracy"] == sum(row["true"] == row["predicted"] for row in rows) / 9
    assert content["calibration"]["temperature"] == 1
    line = next(line for line in out.splitlines() if line.startswith("averaged over 8 views and 2 checkpoints"))
    assert f"accuracy {100 * alone / 9:.2f} -> {100 * content['accuracy']:.2f} %" in line
    assert "16 passes an image in place of 1" in line
    assert "16 passes an image" in (tmp_path / "out/report.html").read_text()
    # One view of one checkpoint is no average.
    _, out, _, content = evaluation(tmp_path, capfd, simple)
    assert "averaged" not in content
    assert "averaged" not in out


@pytest.mark.parametrize(
    ("others", "val_is_drawn", "warned"),
    [
        ({}, True, None),
        ({"seed": 7}, True, "seed = 7 and CHECKPOINT with 0"),
        ({"seed": 7}, False, None),  # train is the same folder
        ({"split": "spatial", "block_size": 50.0}, True, "split = 'spatial' and CHECKPOINT with 'random'"),
        ({"group_column": "flight"}, False, "group_column = 'flight' and CHECKPOINT with None"),
        ({"seed": 1, "dataset_path": "elsewhere/../images"}, True, "seed = 1 and CHECKPOINT with 0"),
        ({"seed": 1, "dataset_path": "elsewhere"}, True, None),
        ({"seed": 1, "dataset_path": "\0"}, True, None),
    ],
)
def test_a_checkpoint_that_was_split_otherwise_is_told(others, val_is_drawn, warned, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = {"dataset_path": "images"}
    models = [SimpleNamespace(provenance={"config": config}) for config in (first, first | others)]
    options = EvaluateOptions(checkpoint="a.pt", data=str(tmp_path / "images"), ensemble=("b.pt",))
    tell_of_seen_images(options, SimpleNamespace(models=models), val_is_drawn)
    out = capsys.readouterr().out
    assert (f"warning: 'b.pt' was trained with {warned}" in out) if warned else not out


def test_what_cannot_be_averaged(simple, tmp_path, capfd):
    names = ("sea", "field", "town")
    FineTuneModel("resnet18", 3, pretrained=False, image_size=32, class_names=names).save_checkpoint(
        tmp_path / "o.pt"
    )
    for arguments, message in (
        (("--ensemble", tmp_path / "o.pt"), "o.pt' has 'sea' as class 1 and the first model 'field'"),
        (("--views", 9), "--views 9: must be a whole number from 1 to 8"),
        (("--views", 8, "--calibrate", tmp_path / "c.pt"), "leave out --views and --ensemble"),
    ):
        code, _, err, _ = evaluation(tmp_path, capfd, simple, *arguments)
        assert code == 2
        assert message in err
    assert not (tmp_path / "c.pt").exists()


def test_what_calibration_refuses_to_overwrite(simple, tmp_path, capfd):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "state.pt").write_bytes(b"precious")
    for path, message in (
        (tmp_path, "give the path of the file to write"),
        (tmp_path / "folder.pt", "give the path of the file to write"),
        (tmp_path / "m.safetensors", "give the path of the file to write"),
        (tmp_path / "state.pt", "state.pt"),
    ):
        code, _, err, _ = evaluation(tmp_path, capfd, simple, "--calibrate", path)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "state.pt").read_bytes() == b"precious"


def test_labels_go_by_name_where_classes_are_absent(simple, class_folders, tmp_path, capfd):
    for split in ("train", "val"):
        (class_folders / split / "field").rename(tmp_path / f"away_{split}")
    code, _, err, found = evaluation(tmp_path, capfd, simple, class_folders)
    assert code == 0, err
    assert [row["images"] for row in found["classes"].values()] == [0, 3, 3]  # field, sea, town


def test_other_images_need_not_be_split_as_those_of_the_training(train_here, class_folders, tmp_path, capfd):
    """A model of a table whose scenes stay together, or of folders of other names, is measured on any folder."""
    paths = sorted((class_folders / "train").rglob("*.*"))
    rows = "".join(f"{path},{path.parent.name},s{number % 4}\n" for number, path in enumerate(paths))
    (tmp_path / "table.csv").write_text("path,label,scene\n" + rows)
    grouped = train_here("--dataset_path", tmp_path / "table.csv", "--group_column", "scene", "--allow_outside")
    assert grouped.code == 0, grouped.err
    code, out, err, found = evaluation(tmp_path, capfd, grouped.best_model, class_folders)
    assert code == 0, err
    assert "note: these images are not split as those of the training: group_column = 'scene'" in out
    assert found["images"] == 9
    code, out, err, again = evaluation(tmp_path, capfd, grouped.best_model, tmp_path / "table.csv", "--allow_outside")
    assert code == 0, err
    assert "not split as those" not in out
    assert again["accuracy"] == grouped.epochs[-1]["val_accuracy"]

    text = (tmp_path / "table.csv").read_text()
    (tmp_path / "table.csv").write_text(text.replace("scene", "place"))  # what it was trained on is not split anew
    code, _, err, _ = evaluation(tmp_path, capfd, grouped.best_model, tmp_path / "table.csv", "--allow_outside")
    assert code == 2 and "no column 'scene'" in err

    (class_folders / "val").rename(class_folders / "held_out")
    named = train_here("--dataset_path", class_folders, "--val_split", "held_out", folder="named")
    assert named.code == 0, named.err
    code, _, err, found = evaluation(tmp_path, capfd, named.best_model, class_folders)
    assert code == 0 and found["images"] == 9, err
    (class_folders / "held_out").rename(class_folders / "val")
    code, _, err, found = evaluation(tmp_path, capfd, named.best_model, class_folders)
    assert code == 0 and found["images"] == 9, err


def test_what_cannot_be_evaluated(simple, class_folders, tmp_path, capfd):
    write_image(class_folders / "train/moor/0.png", (1, 2, 3), 1)
    write_image(class_folders / "val/moor/0.png", (1, 2, 3), 2)
    torch.save({"format": "sat_vg.run"}, tmp_path / "last.pt")
    bands = ("red", "green", "blue", "nir")
    FineTuneModel("resnet18", 3, pretrained=False, image_size=32, bands=bands).save_checkpoint(tmp_path / "nir.pt")
    content = torch.load(simple, weights_only=True)
    torch.save(content | {"class_names": ["sea", "sea", "town"]}, tmp_path / "twice.pt")
    for arguments, message in (
        ((simple, class_folders), "the model knows no class 'moor'; it knows 'field', 'sea', 'town'"),
        ((tmp_path / "none.pt",), "there is no file"),
        ((simple, tmp_path / "none"), "none"),
        ((simple, class_folders, "--split", "test"), "has no folder test"),
        ((simple, "--batch_size", 0), "--batch_size 0: must be a whole number of 1 or more"),
        ((tmp_path / "last.pt",), "is no best_model.pt of sat_vg"),
        ((tmp_path / "nir.pt", class_folders), "takes images with the bands red, green, blue, nir"),
        ((tmp_path / "twice.pt", class_folders), "has two classes of the name 'sea'"),
    ):
        code, out, err, _ = evaluation(tmp_path, capfd, *arguments)
        assert code == 2, (arguments, out, err)
        assert message in err
        assert "Traceback" not in err


def test_weights_that_give_no_numbers_are_named(simple, tmp_path, capfd):
    content = torch.load(simple, weights_only=True)
    content["state_dict"]["fc.bias"][1] = float("nan")
    torch.save(content, simple)
    code, _, err, _ = evaluation(tmp_path, capfd, simple)
    assert code == 2
    assert "gives no finite numbers for 9 of 9 images" in err


def test_the_shown_commands(simple, class_folders, tmp_path, capfd, monkeypatch):
    shutil.copytree(class_folders / "train", class_folders / "test")
    (tmp_path / "ckpt").mkdir()
    shutil.copy(simple, tmp_path / "ckpt/best_model.pt")
    (class_folders / "val/sea/val_1.png").rename(class_folders / "val/town/sea.png")  # a mistake to calibrate on
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs/evaluating.md").read_text()
    fences = re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shown = [line for language, body in fences if language != "python" for line in body.splitlines()]
    assert len(shown) == 4
    for command in shown:
        words = command.replace("CKPT", "ckpt").replace("DIR", str(class_folders)).split()
        assert words[:2] == ["sat-vg", "evaluate"]
        assert evaluate.main(words[2:]) == 0, capfd.readouterr().err
        assert (tmp_path / "evaluation/report.html").exists()
    names = {}
    for language, body in fences:
        if language == "python":
            exec(body.replace("CKPT", "ckpt"), names)
    assert names["model"].temperature != 1
    assert names["probabilities"].sum(1).tolist() == pytest.approx([1, 1])


def test_a_checkpoint_with_strange_records_is_evaluated_all_the_same(simple, tmp_path, capfd):
    content = torch.load(simple, weights_only=True)
    content["metrics"] = {
        "epoch": torch.ones(3), 7: [[1]], (1, 2): float("nan"), "large": 10**30, "<b>": "<i>", "val_loss": {}
    }  # fmt: skip
    content["versions"] = {"sat_vg": [1, "2"]}
    torch.save(content, simple)
    code, _, err, found = evaluation(tmp_path, capfd, simple)
    assert code == 0, err
    assert found["training"]["metrics"] == {
        "epoch": "(Tensor)", "7": "(list)", "?": "(float)", "large": "(int)", "<b>": "<i>", "val_loss": "(dict)"
    }  # fmt: skip
    page = (tmp_path / "out/report.html").read_text()
    assert "<dt>&lt;b&gt;</dt><dd>&lt;i&gt;</dd>" in page
