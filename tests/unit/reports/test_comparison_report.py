"""Ranking, noise, recommendation, and every format of the report, on hostile names as well."""

import csv
import io
import itertools
import re
from html.parser import HTMLParser

import pytest

from sat_vg.backbone_finetuning.reports.comparison_page import as_html, draw_comparison
from sat_vg.backbone_finetuning.reports.comparison_report import (
    Comparison,
    Failure,
    Limits,
    Row,
    as_csv,
    as_markdown,
    as_text,
    ranked,
    table_of,
)
from sat_vg.backbone_finetuning.reports.pages import figure_as_svg

HOSTILE = "<script>alert(1)</script>\n=cmd|'/c'!A1 $x_1$ \\input{/etc/passwd} \x1b[31m`![a](b)`"


def row(backbone="resnet18", strategy="full", accuracies=(0.95, 0.96), **more) -> Row:
    count = len(accuracies)
    values = {
        "image_size": 64,
        "seeds": tuple(range(count)),
        "macro_f1": accuracies,
        "training_seconds": (60.0,) * count,
        "peak_gib": (1.0,) * count,
        "parameters": 11_000_000,
        "flops": 3_600_000_000,
        "images_per_second": 100.0,
    }
    return Row(backbone, strategy, accuracies=tuple(accuracies), **{**values, **more})


def comparison(*rows: Row, **more) -> Comparison:
    return Comparison(rows=ranked(rows), val_images=1000, **more)


FAR = (row("a", accuracies=(0.95, 0.951)), row("b", accuracies=(0.90, 0.901)), row("c", accuracies=(0.949, 0.951)))


def test_rows_are_ranked_and_noise_is_named():
    found = comparison(*FAR)
    assert [one.backbone for one in found.rows] == ["a", "c", "b"]
    assert found.within_noise_of(0) == [2]
    assert found.within_noise_of(1) == [1]
    assert found.within_noise_of(2) == []
    assert found.behind_best(found.rows[2]).value == pytest.approx(-0.05)
    assert "−5.00" in as_text(found)


def test_of_equal_ones_the_cheaper_is_first():
    cheap, dear = row("z", flops=10), row("a", flops=20)
    assert ranked([dear, cheap])[0] is cheap


# By the share of images that are all right it would be the other way round.
SEVERAL = (
    row("a", macro_f1=(0.7, 0.7), accuracies=(0.30, 0.31), maps=(0.95, 0.951)),
    row("b", macro_f1=(0.7, 0.7), accuracies=(0.60, 0.61), maps=(0.90, 0.901)),
    row("c", macro_f1=(0.7, 0.7), accuracies=(0.50, 0.51), maps=(0.949, 0.951), images_per_second=250.0),
)


def test_where_an_image_can_have_several_classes_map_counts():
    found = comparison(*SEVERAL)
    assert [one.backbone for one in found.rows] == ["a", "c", "b"]
    assert [found.within_noise_of(place) for place in range(3)] == [[2], [1], []]
    assert found.behind_best(found.rows[2]).value == pytest.approx(-0.05)
    assert found.recommendation == "Recommended: a full, 95.05 ± 0.07 % validation mAP, the highest of 3."


def test_where_an_image_can_have_several_classes_all_formats_say_so():
    found = comparison(*SEVERAL)
    for shown in (as_text(found), as_markdown(found), as_html(found)):
        assert "mAP, %" in shown
        assert "95.05" in shown
        assert "accuracy" not in shown
        assert "30.50" not in shown
    assert "accuracy, %" in as_text(comparison(*FAR))
    line = next(csv.DictReader(io.StringIO(as_csv(found))))
    assert float(line["map_mean"]) == pytest.approx(0.9505)
    assert float(line["map_std"]) == pytest.approx(0.0005 * 2**0.5)
    assert float(line["accuracy_mean"]) == pytest.approx(0.305)
    assert not {"map_mean", "map_std"} & set(next(csv.DictReader(io.StringIO(as_csv(comparison(*FAR))))))
    bars = draw_comparison(found).axes[0]
    assert bars.get_xlabel() == "validation mAP, %; the axis begins at 85 %"
    assert [patch.get_x() + patch.get_width() for patch in bars.patches] == pytest.approx([95.05, 95.0, 90.05])


def test_noise_is_unknown_with_one_seed():
    found = comparison(row("a", accuracies=(0.95,)), row("b", accuracies=(0.5,)))
    assert found.within_noise_of(0) is None
    assert "unknown" in as_text(found)
    assert "±" not in as_text(found)
    assert found.recommendation.endswith("the highest of 2. With one seed, the difference may be noise.")


SMALL = row("small", accuracies=(0.90, 0.901), parameters=2_000_000, images_per_second=300.0)
LARGE = row("large", accuracies=(0.97, 0.971), parameters=90_000_000, images_per_second=30.0)


@pytest.mark.parametrize(
    ("rows", "limits", "best", "sentence"),
    [
        ([SMALL], Limits(), SMALL, "small full, 90.05 ± 0.07 % validation accuracy, the only one trained."),
        ([SMALL, LARGE], Limits(), LARGE, "large full, 97.05 ± 0.07 % validation accuracy, the highest of 2."),
        ([SMALL, LARGE], Limits(5_000_000), SMALL, "the only one with at most 5 M parameters."),
        ([SMALL, LARGE], Limits(None, 20.0), LARGE, "the highest of 2 with at least 20 images/s."),
        (
            [SMALL, LARGE],
            Limits(1_000_000, 50),
            None,
            "Nothing is recommended: no backbone has at most 1 M parameters and at least 50 images/s.",
        ),
    ],
    ids=["one row", "no limits", "parameters", "speed", "nothing within"],
)
def test_the_best_row_within_the_limits_is_recommended(rows, limits, best, sentence):
    found = comparison(*rows, limits=limits)
    assert found.recommended is best
    assert found.recommendation.endswith(sentence)
    page = as_html(found)
    assert sentence in page
    marked = re.findall(r'<tr class="best"><th scope="row">\d\. (\w+)<br>', page)
    assert marked == ([] if best is None else [best.backbone])


def test_csv_is_read_back():
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison(*FAR)))))
    assert [line["backbone"] for line in lines] == ["a", "c", "b"]
    assert float(lines[2]["to_best"]) == pytest.approx(-0.05)
    assert float(lines[2]["to_best_high"]) < 0
    assert lines[0]["seeds"] == "0 1"
    one = next(csv.DictReader(io.StringIO(as_csv(comparison(row(accuracies=(0.5,), peak_gib=(None,)))))))
    assert one["accuracy_std"] == one["peak_memory_gib"] == ""


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def hostile() -> Comparison:
    return comparison(
        row(HOSTILE, HOSTILE, (0.9, 0.91)),
        row("b", HOSTILE),
        notes=(HOSTILE,),
        failures=(Failure(HOSTILE, HOSTILE, HOSTILE),),
        command=HOSTILE,
        settings=((HOSTILE, HOSTILE),),
        subtitle=HOSTILE,
        reports=((HOSTILE, "cells/timm%3Aa b-full-seed0/report.html"),),
    )


def test_hostile_texts_stay_texts_in_html():
    page = as_html(hostile())
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert "script" not in tags.seen
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 10
    assert "default-src 'none'" in page
    assert "style=" not in page
    anchors = [f"#{name}" for name in ("failures", "ranking", "chart", "differences", "settings", "evaluations")]
    chart, link = (address for address in tags.addresses if address not in anchors)
    assert len(tags.addresses) == len(anchors) + 2
    assert chart.startswith("data:image/svg+xml;base64,")
    assert link == "cells/timm%253Aa%20b-full-seed0/report.html"


def test_hostile_texts_stay_texts_in_markdown_and_csv():
    found = hostile()
    text = as_markdown(found, "accuracy.png")
    code = "    " + text.split("\n    ")[1].split("\n")[0]  # the command, an indented block: nothing is interpreted
    prose = text.replace(code, "")
    assert "<" not in prose
    assert not re.search(r"(?<!\\)`", prose)
    assert "\x1b" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison(row("=1+1", "-2"))))))
    assert lines[0]["backbone"] == "'=1+1"
    assert lines[0]["strategy"] == "'-2"
    assert len(as_csv(found).splitlines()) == 3


def many(backbones: int, strategies: int) -> Comparison:
    """Points that lie close together."""
    rows = []
    for number, strategy in itertools.product(range(backbones), ["linear_probe", "last_layers", "full"][:strategies]):
        accuracy = 0.95 + 0.001 * ((7 * number + len(strategy)) % 5)
        rows.append(
            row(
                f"convnext_large_{number}",
                strategy,
                (accuracy, accuracy + 0.002),
                flops=10**9 + 10**8 * number,
                training_seconds=(60.0 + number + len(strategy), 61.0),
            )
        )
    return comparison(*rows)


@pytest.mark.parametrize(
    "found",
    [many(2, 2), many(12, 3), comparison(row(accuracies=(1.0, 1.0))), comparison(row(accuracies=(0.0,))), hostile()],
    ids=["plain", "many", "perfect", "nothing right", "hostile"],
)
def test_the_chart(found):
    figure = draw_comparison(found)
    drawn = figure_as_svg(figure)
    assert b"<script" not in drawn
    assert len(drawn) > 5000
    assert drawn == figure_as_svg(draw_comparison(found)), "the same chart is the same file"
    scores, *costs = figure.axes
    assert [axes.get_xlabel() for axes in costs] == ["GFLOPs", "training, s"]
    for axes in figure.axes:
        assert len(axes.patches) == len(found.rows)
        inside = axes.get_window_extent()
        for label in axes.texts:
            box = label.get_window_extent()
            assert box.x1 <= inside.x1 + 5, f"{label.get_text()} is cut off"
    for label, following in itertools.pairwise(scores.get_yticklabels()):
        assert not label.get_window_extent().overlaps(following.get_window_extent())


def test_top_5_and_the_gpus_memory_are_shown_where_they_are_known():
    plain = comparison(*FAR)
    assert not {"top 5, %", "GPU GiB"} & set(table_of(plain)[0])
    known = row("d", top_5=(0.99, 0.97), gpu_gib=(1.5, 1.75))
    found = comparison(known, *FAR[:1])
    headings, cells = table_of(found)
    shown = {line[1]: dict(zip(headings, line, strict=True)) for line in cells}
    assert (shown["d"]["top 5, %"], shown["d"]["GPU GiB"]) == ("98.00 ± 1.41", "1.75")
    assert (shown["a"]["top 5, %"], shown["a"]["GPU GiB"]) == ("–", "–")
    lines = {line["backbone"]: line for line in csv.DictReader(io.StringIO(as_csv(found)))}
    assert float(lines["d"]["top_5_mean"]) == pytest.approx(0.98)
    assert (lines["d"]["gpu_memory_gib"], lines["a"]["gpu_memory_gib"], lines["a"]["top_5_mean"]) == ("1.75", "", "")
    assert lines["a"]["peak_memory_gib"] == "1.0"


def test_long_names_of_backbones_are_whole_in_the_chart():
    names = ("timm:tf_efficientnet_lite0.in1k", "timm:vit_small_patch14_reg4_dinov2.lvd142m", "resnet18")
    figure = draw_comparison(comparison(*(row(name) for name in names)))
    figure_as_svg(figure)
    labels = figure.axes[0].get_yticklabels()
    shown = {label.get_text().replace("\n", "") for label in labels}
    assert shown == {f"{name}full" for name in names}
    assert all(len(line) <= 24 for label in labels for line in label.get_text().split("\n"))
    assert not any(
        a.get_window_extent().overlaps(b.get_window_extent()) for a, b in itertools.combinations(labels, 2)
    )


@pytest.mark.parametrize(("rows", "start"), [((row(accuracies=(0.3, 0.4)),), 0), (FAR, 85)])
def test_bars_begin_at_zero_or_say_so(rows, start):
    axes = draw_comparison(comparison(*rows)).axes[0]
    assert axes.get_xlim()[0] == start
    assert ("the axis begins at 85 %" in axes.get_xlabel()) == bool(start)
