import csv
import io
import re
from html import unescape
from itertools import pairwise

import numpy as np
import pytest

from sat_vg.backbone_finetuning.commands.evaluate.files import summary_of
from sat_vg.backbone_finetuning.reports.evaluation_figures import TERMS, draw_class_scores, draw_reliability
from sat_vg.backbone_finetuning.reports.evaluation_page import render_report
from sat_vg.backbone_finetuning.reports.prediction_table import Prediction, SetPrediction, predictions_csv

PICTURE = np.zeros((8, 8, 3), np.uint8)
EPOCHS = [
    {"epoch": n, "train_loss": 1 / n, "val_loss": 1.5 / n, "val_accuracy": 0.5, "val_map": n / 4} for n in (1, 2, 3)
]


def rows_of(num_classes):
    return [{"precision": 0.9, "recall": 0.8, "f1": i / num_classes, "images": 10} for i in range(num_classes)]


def content_of(names, confusion):
    bins = [{"low": 0.5, "high": 1.0, "images": 10, "confidence": 0.9, "accuracy": 0.8}]
    return {
        "task": "single_label",
        "checkpoint": "best_model.pt",
        "data": "DIR",
        "split": "val",
        "backbone": "resnet18",
        "image_size": 32,
        "images": 10 * len(names),
        "accuracy": 0.8,
        "loss": 0.5,
        "macro_f1": 0.8,
        "ece": 0.1,
        "intervals": {"level": 0.95, "resamples": 1000, "accuracy": [0, 1], "macro_f1": [0, 1], "ece": [0, 1]},
        "averages": {"macro": rows_of(1)[0], "weighted": rows_of(1)[0]},
        "classes": dict(zip(names, rows_of(len(names)), strict=True)),
        "calibration": {
            "temperature": 1.0, "nll": 0.5, "bins": bins, "uncalibrated_ece": 0.1, "uncalibrated_nll": 0.5
        },
        "calibrated_here": False,
        "mistakes": [],
        "confusion": confusion,
        "confusion_normalised": [[count / 10 for count in row] for row in confusion],
        "training": {"metrics": {"epoch": 2}, "config": {"seed": 0, "bad": "<b>\x1b"}},
        "versions": {"training": {"torch": "<i>"}, "evaluation": {"sat_vg": "1"}},
    }  # fmt: skip


def test_no_cell_is_taken_for_a_formula():
    names = ["=1+1", "+cmd", "-2", "@SUM(A1)", "\t=1", 'a,"b"', "new\nline", "\x1b[31m", "ünï", "\udcff"]
    predictions = [Prediction(f"{name}/x.png", i, [i, 0, 1], [0.7, 0.2, 0.1]) for i, name in enumerate(names)]
    text = predictions_csv(predictions, names)
    text.encode("utf-8")
    lines = list(csv.reader(io.StringIO(text)))
    assert lines[0][:6] == ["path", "true", "predicted", "probability", "correct", "in_top_5"]
    assert lines[0][6:] == ["class_2", "probability_2", "class_3", "probability_3"]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for line in lines for cell in line)
    assert [line[1] for line in lines[1:]] == [
        "'=1+1", "'+cmd", "'-2", "'@SUM(A1)", "'\\t=1", 'a,"b"', "new\\nline", "\\x1b[31m", "ünï", "\\udcff"
    ]  # fmt: skip
    assert lines[1][0] == "'=1+1/x.png"
    assert lines[3][3:] == ["0.700000", "true", "true", "'=1+1", "0.200000", "'+cmd", "0.100000"]


def test_the_page_takes_nothing_from_elsewhere_and_nothing_for_markup():
    names = ["<script>alert(1)</script>", "a&b\n\"c\" 'd'"]
    mistake = {"path": "<img src=x>", "true": names[0], "predicted": names[1], "probability": 0.9}
    content = content_of(names, [[8, 2], [1, 9]]) | {"mistakes": [mistake]}
    page = render_report(content, [{"image": PICTURE, "Grad-CAM": PICTURE, "attention": PICTURE}], EPOCHS)
    check_is_text(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<strong>&lt;script&gt;" in page
    assert "a&amp;b\\n&#34;c&#34; &#39;d&#39;" in page
    assert "&lt;b&gt;\\x1b" in page
    assert "<i>" not in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "attention of the last block" in page
    assert "script-src" not in page
    assert "default-src 'none'" in page


def check_is_text(page):
    """Nothing of the data is markup, and nothing comes from elsewhere."""
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert not re.search(r"https?:|@import|url\(|\son\w+=|style=", page)


@pytest.mark.parametrize(("count", "is_table"), [(40, True), (41, False)])
def test_a_large_matrix_becomes_a_picture(count, is_table):
    content = content_of([f"c{i}" for i in range(count)], (10 * np.eye(count, dtype=int)).tolist())
    page = render_report(content, [], [], "nobody kept it")
    assert ('id="matrix"' in page) == is_table
    assert page.count("data:image/svg+xml;base64,") == 1
    assert page.count("data:image/png;base64,") == (0 if is_table else 1)
    assert "There are no curves: nobody kept it." in page
    assert "No class was confused with another." in page


@pytest.mark.parametrize(("images", "sentence"), [(1, "The image is"), (1200, "All 1,200 images are")])
def test_one_image_and_many(images, sentence):
    page = render_report(content_of(["a"], [[10]]) | {"images": images}, [], EPOCHS[:1])
    assert f"{sentence} classified correctly." in page
    assert f"{'1 image' if images == 1 else '1,200 images'} of the val split in 1 class, at 32 × 32 pixels" in page
    assert "One epoch: training loss 1.0000, validation loss 1.5000, validation mAP 25.00 %." in page


def test_figures_of_an_evaluation():
    figure = draw_class_scores([f"class $x_{i}$" for i in range(70)], [*rows_of(69), rows_of(1)[0] | {"images": 0}])
    axes = figure.axes[0]
    assert len(axes.patches) == 3 * 60
    assert "the worst 60 of 69" in axes.get_title()
    assert axes.get_yticklabels()[0].get_text() == r"class \$x_0\$ (10)"
    figure.savefig(io.BytesIO(), format="png")
    bins = [{"low": i / 4, "high": (i + 1) / 4, "images": 5 * i, "confidence": 0.2 * i, "accuracy": 0.25 * i}
            for i in range(4)]  # fmt: skip
    upper, lower = draw_reliability(bins, 0.05, TERMS["single_label"]).axes
    assert [bar.get_height() for bar in upper.patches] == [25, 50, 75]
    assert [bar.get_height() for bar in lower.patches] == [5, 10, 15]
    assert "5.00 %" in upper.get_title()
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == ("accuracy, %", "confidence, %", "images")
    upper, lower = draw_reliability(bins, 0.05, TERMS["multi_label"]).axes
    assert upper.get_ylabel() == "share that has the class, %"
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("probability, %", "pairs")


def content_of_sets(names):
    row = {"precision": 0.9, "recall": 0.8, "f1": 0.85, "average_precision": 0.7, "images": 10}
    classes = {name: row | {"f1": place / 10, "images": 10 * place} for place, name in enumerate(names)}
    scores = dict.fromkeys(("map", "accuracy", "macro_f1", "micro_f1"), 0.75)
    content = content_of(names, [[0]])
    del content["confusion"], content["confusion_normalised"]
    return content | {
        "task": "multi_label",
        **scores,
        "intervals": {"level": 0.95, "resamples": 1000, **{name: [0.5, 0.875] for name in scores}},
        "averages": {"macro": row, "micro": {"precision": 0.9, "recall": 0.8, "f1": 0.85}},
        "classes": classes,
    }


def test_the_page_of_several_classes_takes_nothing_for_markup():
    names = ["<script>alert(1)</script>", "a&b\n\"c\" 'd'", "sea"]
    mistake = {
        "path": "<img src=x>", "true": [names[0]], "predicted": names[1:], "missed": {names[0]: 0.125},
        "added": {names[1]: 0.875}, "loss": 1.5, "explained": names[1],
    }  # fmt: skip
    content = content_of_sets(names) | {"mistakes": [mistake]}
    page = render_report(content, [{"image": PICTURE, "Grad-CAM": PICTURE}], EPOCHS)
    check_is_text(page)
    caption = re.search(r"<figcaption>(.*?)<code>", page, re.DOTALL).group(1)
    shown = "a&b\\n\"c\" 'd'"
    assert [" ".join(unescape(line).split()) for line in caption.split("<br>")] == [
        "missed: <script>alert(1)</script> at 12.5 %",
        f"wrongly predicted: <b>{shown}</b> at 87.5 %",
        "right: <strong>sea</strong>",
        "",
    ]
    assert page.count("data:image/jpeg;base64,") == 2
    assert "loss and mAP by epoch" in page
    assert ">75.00<small>%</small>" in page
    assert "95 %: 50.0 to 87.5" in page
    for absent in ("Confusion", "its interval", "confidence %"):
        assert absent not in page
    assert "<dd>−0.5000 per pair of an image and a class</dd>" in page
    assert re.search(r"50 to 100</th><td>10</td><td>90.0</td><td>80.0</td>", page), "the bins as a table"
    assert "probability %</th>" in page
    classes = page[page.index('<section id="classes">') : page.index('<section id="calibration">')]
    rows = re.findall(r'<th scope="row">(.*?)</th>', classes)
    assert [unescape(re.sub(r"<[^>]*>", "", row)) for row in rows] == [
        shown, "sea", "<script>alert(1)</script>", "macro average", "micro average"
    ]  # fmt: skip
    empty = render_report(content_of_sets(names), [], [], "nobody kept it")
    assert "All classes of all 30 images are right." in empty


def test_a_table_of_several_classes_with_spreadsheets_in_mind():
    names = ["=1+1", "sea", "a,b"]
    predictions = [
        SetPrediction("-x.png", [True, True, False], [True, False, True], [0.9, 0.25, 0.75], 0.5),
        SetPrediction("y.png", [False] * 3, [False] * 3, [0.1, 0.2, 0.3], 0.125),
    ]
    lines = list(csv.reader(io.StringIO(predictions_csv(predictions, names))))
    assert lines[0] == ["path", "true", "predicted", "correct", "loss", "'=1+1", "sea", "a,b"]
    assert lines[1] == [
        "'-x.png", "'=1+1|sea", "'=1+1|a,b", "false", "0.500000", "0.900000", "0.250000", "0.750000"
    ]  # fmt: skip
    assert lines[2][:4] == ["y.png", "", "", "true"]
    assert predictions[0].named(names) == {
        "path": "-x.png", "true": ["=1+1", "sea"], "predicted": ["=1+1", "a,b"], "missed": {"sea": 0.25},
        "added": {"a,b": 0.75}, "loss": 0.5,
    }  # fmt: skip


def test_bars_of_average_precision_stand_beside_the_others():
    rows = [row | {"average_precision": 0.5} for row in rows_of(3)]
    axes = draw_class_scores(["a", "b", "c"], rows).axes[0]
    assert len(axes.patches) == 4 * 3
    spans = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches)
    assert all(one[1] < other[0] for one, other in pairwise(spans))  # none lies on another
    draw_class_scores(["a"], [rows_of(1)[0] | {"images": 0}]).savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(("accuracy", "is_said"), [(1.0, True), (5 / 6, False)])
def test_that_no_image_is_wrong_is_no_certainty(accuracy, is_said):
    shares = dict.fromkeys(("accuracy", "macro_f1", "ece"), accuracy)
    intervals = {"level": 0.95, "resamples": 1000, **{name: [share, share] for name, share in shares.items()}}
    content = {"task": "single_label", "classes": {}, "averages": {}, "images": 6, "split": "val", "loss": 0.1}
    text = summary_of({**content, **shares, "intervals": intervals, "calibration": {"temperature": 1.0}})
    # 1 - 0.05 ** (1 / 6): with so many wrong ones, six right ones in a row would be a case of 5 %.
    assert ("up to 39.3 % of such images may be" in text) == is_said
