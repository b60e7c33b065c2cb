import csv
import io
import re
from itertools import pairwise

import numpy as np
import pytest

from sat_vg.backbone_finetuning.reports.evaluation_figures import draw_class_scores, draw_reliability
from sat_vg.backbone_finetuning.reports.html_report import Mistake, Report, render_report
from sat_vg.backbone_finetuning.reports.prediction_table import (
    Prediction,
    SetPrediction,
    predictions_csv,
    set_predictions_csv,
)
from sat_vg.backbone_finetuning.reports.sets_report import SetMistake, render_sets_report
from sat_vg.backbone_finetuning.reports.svg_charts import OF_PAIRS, curves_chart


def rows_of(num_classes):
    return [{"precision": 0.9, "recall": 0.8, "f1": i / num_classes, "images": 10} for i in range(num_classes)]


def content_of(names, confusion):
    bins = [{"low": 0.5, "high": 1.0, "images": 10, "confidence": 0.9, "accuracy": 0.8}]
    return {
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
    picture = np.zeros((8, 8, 3), np.uint8)
    mistake = Mistake("<img src=x>", names[0], names[1], 0.9, picture, picture, picture)
    epochs = [{"epoch": n, "train_loss": 1 / n, "val_loss": 1.5 / n, "val_accuracy": 0.5} for n in (1, 2, 3)]
    page = render_report(Report(content_of(names, [[8, 2], [1, 9]]), [mistake], epochs))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a&amp;b\\n&quot;c&quot; &#x27;d&#x27;" in page
    assert "&lt;b&gt;\\x1b" in page
    assert "<img src=x" not in page
    assert "<i>" not in page
    assert not re.search(r"https?:|@import|url\(|\son\w+=|style=", page)
    assert page.count("data:image/jpeg;base64,") == 3
    assert page.count("<polyline") == 3
    assert "script-src" not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(("count", "is_table"), [(40, True), (41, False)])
def test_a_large_matrix_becomes_a_picture(count, is_table):
    page = render_report(Report(content_of([f"c{i}" for i in range(count)], (10 * np.eye(count, dtype=int)).tolist()),
                                [], [], "nobody kept it"))  # fmt: skip
    assert ('id="matrix"' in page) == is_table
    assert ("data:image/png;base64," in page) != is_table
    assert "There are no curves: nobody kept it." in page
    assert "Nothing was confused." in page


def test_curves_stay_within_their_chart():
    for values in ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1e-9, 3e-9, 2e-9], [5e6, 1.0, 0.1], [99.9, 99.95, 100.0]):
        chart = curves_chart([3, 4, 9], {"main": values}, "loss", 4)
        points = re.search(r'points="([^"]*)"', chart).group(1)
        places = [tuple(map(float, point.split(","))) for point in points.split()]
        assert all(42 <= x <= 350 and 10 <= y <= 210 for x, y in places), values
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        labels = re.findall(r'text-anchor="end">([^<]*)<', chart)
        assert len(set(labels)) == len(labels) >= 2, (values, labels)


def test_figures_of_an_evaluation():
    figure = draw_class_scores([f"class $x_{i}$" for i in range(70)], [*rows_of(69), rows_of(1)[0] | {"images": 0}])
    axes = figure.axes[0]
    assert len(axes.patches) == 3 * 60
    assert "the worst 60 of 69" in axes.get_title()
    assert axes.get_yticklabels()[0].get_text() == r"class \$x_0\$ (10)"
    figure.savefig(io.BytesIO(), format="png")
    bins = [{"low": i / 4, "high": (i + 1) / 4, "images": 5 * i, "confidence": 0.2 * i, "accuracy": 0.25 * i}
            for i in range(4)]  # fmt: skip
    upper, lower = draw_reliability(bins, 0.05).axes
    assert [bar.get_height() for bar in upper.patches] == [25, 50, 75]
    assert [bar.get_height() for bar in lower.patches] == [5, 10, 15]
    assert "5.00 %" in upper.get_title()
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == ("accuracy, %", "confidence, %", "images")
    upper, lower = draw_reliability(bins, 0.05, OF_PAIRS).axes
    assert upper.get_ylabel() == "share that has the class, %"
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("probability, %", "pairs")


def content_of_sets(names):
    row = {"precision": 0.9, "recall": 0.8, "f1": 0.85, "average_precision": 0.7, "images": 10}
    classes = {name: row | {"f1": place / 10, "images": 10 * place} for place, name in enumerate(names)}
    scores = dict.fromkeys(("map", "accuracy", "macro_f1", "micro_f1"), 0.75)
    return content_of(names, [[0]]) | {
        "task": "multi_label",
        **scores,
        "intervals": {"level": 0.95, "resamples": 1000, **{name: [0.5, 0.875] for name in scores}},
        "averages": {"macro": row, "micro": {"precision": 0.9, "recall": 0.8, "f1": 0.85}},
        "classes": classes,
    }


def test_the_page_of_several_classes_takes_nothing_for_markup():
    names = ["<script>alert(1)</script>", "a&b\n\"c\" 'd'", "sea"]
    picture = np.zeros((8, 8, 3), np.uint8)
    mistake = SetMistake(
        "<img src=x>", [names[0]], [names[1], names[2]], {names[0]: 0.125}, {names[1]: 0.875}, 1.5, names[1],
        picture, picture,
    )  # fmt: skip
    epochs = [
        {"epoch": n, "train_loss": 1 / n, "val_loss": 1.5 / n, "val_accuracy": 0.5, "val_map": n / 4}
        for n in (1, 2, 3)
    ]
    page = render_sets_report(Report(content_of_sets(names), [mistake], epochs))
    assert "<script" not in page
    assert "<img src=x" not in page
    assert not re.search(r"https?:|@import|url\(|\son\w+=|style=", page)
    shown = "a&amp;b\\n&quot;c&quot; &#x27;d&#x27;"
    assert (
        "not given: &lt;script&gt;alert(1)&lt;/script&gt; at 12.5&nbsp;%<br>"
        f"wrongly given: <b>{shown}</b> at 87.5&nbsp;%<br>"
        "right: <strong>sea</strong>"
    ) in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "mAP, % by epoch" in page
    assert ">75.00<small>%</small>" in page
    assert "95 %: 50.0 to 87.5" in page
    for absent in ("Confusion", "cross-entropy, nats</span></div><div>", "its interval", "confidence, %"):
        assert absent not in page
    assert "<dd>−0.5000 per pair of an image and a class</dd>" in page
    assert "<title>probability 50 to 100 %: 10 pairs, 80.0 % have the class, mean probability 90.0 %</title>" in page
    assert ">probability, %</text>" in page
    rows = re.findall(r"<tr><th scope=row>(.*?)</th>", page)
    assert [re.sub(r"<[^>]*>", "", row) for row in rows] == [
        shown, "sea", "&lt;script&gt;alert(1)&lt;/script&gt;", "macro average", "micro average"
    ]  # fmt: skip
    empty = render_sets_report(Report(content_of_sets(names), [], [], "nobody kept it"))
    assert "All classes of all 30 images are right." in empty


def test_a_table_of_several_classes_with_spreadsheets_in_mind():
    names = ["=1+1", "sea", "a,b"]
    predictions = [
        SetPrediction("-x.png", [True, True, False], [True, False, True], [0.9, 0.25, 0.75], 0.5),
        SetPrediction("y.png", [False] * 3, [False] * 3, [0.1, 0.2, 0.3], 0.125),
    ]
    lines = list(csv.reader(io.StringIO(set_predictions_csv(predictions, names))))
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
