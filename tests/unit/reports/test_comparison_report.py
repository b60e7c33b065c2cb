"""Ranking, noise, recommendation, and every format of the report, on hostile names as well."""

import csv
import io
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sat_vg.backbone_finetuning.reports.comparison_figures import (
    DARK,
    FLOPS,
    LIGHT,
    TRAINING,
    as_png,
    as_svg,
    draw_accuracies,
    draw_accuracy_against,
)
from sat_vg.backbone_finetuning.reports.comparison_page import Picture, as_html
from sat_vg.backbone_finetuning.reports.comparison_report import (
    Comparison,
    Failure,
    Row,
    as_csv,
    as_latex,
    as_markdown,
    as_text,
    ranked,
)
from sat_vg.backbone_finetuning.reports.recommendation import Limits, recommend

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
    return Comparison(rows=ranked(rows), val_images=1000, recommendation="Take it.", **more)


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
    best, reason = recommend(found.rows, Limits(), found.grain)
    assert best is SEVERAL[0]
    assert reason == (
        "Recommended: a with full: 95.05 ± 0.07 % validation mAP, the highest of 3. Within noise of it: c with full. "
        "Of these c is 2.5 times as fast at inference."
    )
    _, reason = recommend([SEVERAL[0], replace(SEVERAL[1], parameters=1)], Limits(max_params=5), found.grain)
    assert "a with full gets 5.00 points more, but has 11.00 M parameters." in reason


def test_where_an_image_can_have_several_classes_all_formats_say_so():
    found = comparison(*SEVERAL)
    for shown in (as_text(found), as_markdown(found), as_html(found, []), as_latex(found).replace("\\%", "%")):
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
    bars, points = draw_accuracies(found).axes[0], draw_accuracy_against(found, FLOPS).axes[0]
    assert bars.get_xlabel() == "validation mAP, %; the axis begins at 85 %"
    assert [patch.get_x() + patch.get_width() for patch in bars.patches] == pytest.approx([95.05, 95.0, 90.05])
    assert points.get_ylabel() == "validation mAP, %"
    assert points.get_ylim()[0] > 80


def test_noise_is_unknown_with_one_seed():
    found = comparison(row("a", accuracies=(0.95,)), row("b", accuracies=(0.5,)))
    assert found.within_noise_of(0) is None
    assert "unknown" in as_text(found)
    assert "±" not in as_text(found)
    _, reason = recommend(found.rows, Limits(), found.grain)
    assert "With one seed it is not known" in reason


def test_the_recommendation_keeps_to_the_limits_and_says_why():
    small = row("small", accuracies=(0.90, 0.901), parameters=2_000_000, images_per_second=300.0)
    large = row("large", accuracies=(0.97, 0.971), parameters=90_000_000, images_per_second=30.0)
    best, reason = recommend([small, large], Limits(), 0.001)
    assert best is large
    assert reason == (
        "Recommended: large with full: 97.05 ± 0.07 % validation accuracy, the highest of 2. All others are behind "
        "it by more than noise."
    )
    best, reason = recommend([small, large], Limits(max_params=5_000_000), 0.001)
    assert best is small
    assert "the only one that has at most 5 M parameters" in reason
    assert "large with full gets 7.00 points more, but has 90.00 M parameters" in reason
    best, reason = recommend([small, large], Limits(1_000_000, 50), 0.001)
    assert best is None
    assert "small has 2.00 M parameters" in reason
    assert "large has 90.00 M parameters and reaches 30 images/s" in reason


def test_a_cheaper_one_within_noise_is_pointed_at_and_not_chosen():
    fast = row("fast", accuracies=(0.949, 0.951), images_per_second=250.0)
    best, reason = recommend([row("slow", accuracies=(0.95, 0.951)), fast], Limits(), 0.001)
    assert best is not None
    assert best.backbone == "slow"
    assert "Within noise of it: fast with full. Of these fast is 2.5 times as fast at inference." in reason


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
    page = as_html(hostile(), [Picture(HOSTILE, b"<svg/>", b"<svg/>")])
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert "script" not in tags.seen
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 10
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert len(tags.addresses) == 3
    assert tags.addresses[-1] == "cells/timm%253Aa%20b-full-seed0/report.html"
    assert all(address.startswith(("data:image/svg+xml;base64,", "cells/")) for address in tags.addresses)


def test_hostile_texts_stay_texts_in_markdown_csv_and_latex():
    found = hostile()
    text = as_markdown(found, [(HOSTILE, "accuracy.png")])
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
    table = as_latex(found)
    assert "\\input" not in table
    assert r"\textbackslash{}input\{/etc/passwd\}" in table
    assert not re.search(r"(?<!\\)\$x", table)
    assert table.count(r" \\") == 3


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


@pytest.mark.parametrize("cost", [FLOPS, TRAINING])
@pytest.mark.parametrize(("backbones", "strategies"), [(1, 1), (2, 3), (4, 3), (12, 3)])
def test_labels_do_not_overlap(cost, backbones, strategies):
    found = many(backbones, strategies)
    figure = draw_accuracy_against(found, cost)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [text for text in axes.texts if text.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) >= min(backbones, 12)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    inside = axes.get_window_extent()
    for box in boxes:
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1
    for place in range(len(found.rows)):
        at = axes.transData.transform((cost.of(found.rows[place]), 100 * found.rows[place].score))
        assert inside.contains(*at)
        assert not any(box.contains(*at) for box in boxes)


@pytest.mark.parametrize(
    "found",
    [many(2, 2), comparison(row(accuracies=(1.0, 1.0))), comparison(row(accuracies=(0.0,))), hostile()],
    ids=["plain", "perfect", "nothing right", "hostile"],
)
def test_pictures_can_be_drawn(found):
    for theme in (LIGHT, DARK):
        for figure in (draw_accuracies(found, theme), draw_accuracy_against(found, TRAINING, theme)):
            drawn = as_svg(figure)
            assert b"<script" not in drawn
            assert len(drawn) > 5000
    assert as_png(draw_accuracies(found)).startswith(b"\x89PNG")
    assert as_svg(draw_accuracies(found)) == as_svg(draw_accuracies(found)), "the same picture is the same file"


def test_bars_begin_at_zero_or_say_so():
    low = draw_accuracies(comparison(row(accuracies=(0.3, 0.4)))).axes[0]
    assert low.get_xlim()[0] == 0
    assert "begins" not in low.get_xlabel()
    high = draw_accuracies(comparison(*FAR)).axes[0]
    assert high.get_xlim()[0] == 85
    assert "the axis begins at 85 %" in high.get_xlabel()
