"""``sat-vg evaluate``: its numbers are those of the training, and of scikit-learn."""

import json

import pytest
import torch
from conftest import write_image
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from sat_vg.backbone_finetuning import evaluate
from sat_vg.backbone_finetuning.data.decoding import decode_rgb
from sat_vg.backbone_finetuning.evaluation import class_rows
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe


@pytest.fixture
def run(class_folders, train_here):
    run = train_here("--dataset_path", class_folders, "--num_epochs", 3, "--early_stopping_metric", "val_loss")
    assert run.code == 0, run.err
    return run


def evaluation(tmp_path, capfd, *arguments):
    capfd.readouterr()
    code = evaluate.main([*map(str, arguments), "--output_dir", str(tmp_path / "out")])
    out, err = capfd.readouterr()
    content = json.loads((tmp_path / "out/evaluation.json").read_text()) if code == 0 else None
    return code, out, err, content


def test_the_numbers_are_those_of_the_best_epoch(run, tmp_path, capfd):
    code, out, err, found = evaluation(tmp_path, capfd, run.best_model)
    assert code == 0, err
    best = min(run.epochs, key=lambda line: line["val_loss"])
    assert found["accuracy"] == best["val_accuracy"]
    assert found["loss"] == pytest.approx(best["val_loss"], rel=1e-6)  # another batch size adds up in another order
    assert f"val: accuracy {100 * best['val_accuracy']:.2f} % of 9 images" in out
    assert (tmp_path / "out/confusion_matrix.png").stat().st_size > 1000


def test_they_are_those_of_scikit_learn(run, class_folders, tmp_path, capfd):
    _, _, _, found = evaluation(tmp_path, capfd, run.best_model, class_folders, "--split", "train")
    assert found["split"] == "train"
    model = FineTuneModel.load_checkpoint(run.best_model)
    paths = sorted((class_folders / "train").rglob("*.*"))
    truth = [model.class_names.index(path.parent.name) for path in paths]
    geometry = model.preprocessing.geometry()
    images = torch.stack([geometry(decode_rgb(str(path))) for path in paths])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        predicted = model(model.preprocessing.normalise(images)).argmax(1).tolist()
    assert found["images"] == len(paths) == 27
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=range(3)).tolist()
    assert found["accuracy"] == accuracy_score(truth, predicted)


def test_class_numbers_on_a_matrix_with_gaps():
    matrix = [[5, 1, 0, 0], [2, 3, 0, 1], [0, 0, 0, 0], [0, 4, 0, 0]]
    truth = [r for r, row in enumerate(matrix) for count in row for _ in range(count)]
    predicted = [c for row in matrix for c, count in enumerate(row) for _ in range(count)]
    expected = precision_recall_fscore_support(truth, predicted, labels=range(4), zero_division=0)
    for row, *theirs in zip(class_rows(matrix), *expected, strict=True):
        assert list(row.values()) == pytest.approx(theirs)


def test_labels_go_by_name_where_classes_are_absent(run, class_folders, tmp_path, capfd):
    for split in ("train", "val"):
        (class_folders / split / "field").rename(tmp_path / f"away_{split}")
    code, _, err, found = evaluation(tmp_path, capfd, run.best_model, class_folders)
    assert code == 0, err
    assert [row["images"] for row in found["classes"].values()] == [0, 3, 3]  # field, sea, town


def test_what_cannot_be_evaluated(run, class_folders, tmp_path, capfd):
    write_image(class_folders / "train/moor/0.png", (1, 2, 3), 1)
    write_image(class_folders / "val/moor/0.png", (1, 2, 3), 2)
    for arguments, message in (
        ((run.best_model, class_folders), "the model knows no class 'moor'; it knows 'field', 'sea', 'town'"),
        ((tmp_path / "none.pt",), "there is no file"),
        ((run.best_model, tmp_path / "none"), "none"),
        ((run.best_model, class_folders, "--split", "test"), "has no folder test"),
        ((run.best_model, "--batch_size", 0), "batch_size = 0: must be a whole number of 1 or more"),
        ((run.folder / "ckpt/last.pt",), "is no best_model.pt of sat_vg"),
    ):
        code, out, err, _ = evaluation(tmp_path, capfd, *arguments)
        assert code == 2, (arguments, out, err)
        assert message in err
        assert "Traceback" not in err
