from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import ImageDraw

from sat_vg.backbone_finetuning.reports.figures import draw_learning_curves
from sat_vg.backbone_finetuning.reports.projector import principal_components
from sat_vg.backbone_finetuning.reports.record_pictures import (
    _broken,
    _fitting,
    draw_confusion,
    draw_curves,
    draw_image_grid,
    in_lines,
)
from sat_vg.backbone_finetuning.reports.tables import text_table


def test_the_record_shows_the_confusion_with_names_and_counts():
    confusion = np.array([[30, 10, 0], [0, 0, 50], [0, 0, 70]])
    drawn = np.asarray(draw_confusion(confusion, ["sea", "$x_1$", "wood\x1b"]))
    whole = {tuple(colour) for colour in ((8, 48, 107), (247, 251, 255))}
    assert whole <= {tuple(pixel) for pixel in drawn.reshape(-1, 3)}
    rows, columns = np.nonzero((drawn == (8, 48, 107)).all(axis=2))  # all of a class: two cells, one above the other
    cell = (rows.max() + 1 - rows.min()) // 2
    assert columns.max() + 1 - columns.min() == cell
    top, left = rows.min() - cell, columns.min() - 2 * cell
    middles = drawn[top + 2 : top + 3 * cell : cell, left + 2 : left + 3 * cell : cell].astype(int)
    order = middles.sum(axis=2)
    assert (order[0, 2], order[1, 2]) == (753, 163)
    assert order[0, 0] < order[0, 1] < order[0, 2] == order[1, 0] == order[1, 1] == order[2, 0] == order[2, 1]
    other = np.asarray(draw_confusion(confusion + np.eye(3, dtype=int), ["sea", "$x_1$", "wood\x1b"]))
    assert not np.array_equal(other, drawn)
    assert not np.array_equal(np.asarray(draw_confusion(confusion, ["sea", "x_1", "wood\x1b"])), drawn)
    assert np.array_equal(np.asarray(draw_confusion(confusion, ["sea", "$x_1$", "wood?"])), drawn)


def test_the_texts_of_the_record_can_be_read_and_lie_apart(monkeypatch):
    texts = []
    draw = ImageDraw.ImageDraw.text

    def text(self, place, text, fill, font, anchor="la"):
        texts.append((self.im.size, text, font.size, self.textbbox(place, text, font, anchor)))
        draw(self, place, text, fill, font, anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    names = [f"mediumresidential {i}" for i in range(21)]
    size = draw_confusion(np.full((21, 21), 1000), names).size
    on_it = [found for found in texts if found[0] == size]
    assert [found[1] for found in on_it[:2]] == [
        "441,000 validation images, 4.76 % correct", "rows: true class, columns: predicted class"
    ]  # fmt: skip
    rows = [found for found in on_it if found[1] in names]
    assert [found[1] for found in rows] == names
    assert all(found[2] * 350 / size[0] > 6.5 for found in rows)  # pixels
    assert all(a[3][3] <= b[3][1] for a, b in pairwise(rows)), "names lie over one another"
    counts = [found[3] for found in on_it if found[1] == "1000"]
    assert len(counts) == 441
    assert all(a[2] < b[0] for a, b in pairwise(counts[:21])), "counts lie over one another"
    assert all(box[0] >= 0 and box[2] <= size[0] and box[3] <= size[1] for *_, box in on_it), "a text is cut off"
    assert sum(found[1] in names and found[0] != size for found in texts) == 21  # upright ones, under the columns
    texts.clear()
    assert max(draw_confusion(np.eye(200, dtype=int), [f"class {i}" for i in range(200)]).size) < 1400
    assert len(texts) == 2  # the heading alone
    texts.clear()
    draw_confusion(np.eye(2, dtype=int), ["a", "b"], "test")
    assert texts[0][1] == "2 test images, 100.00 % correct"


def boxes_of(grid, colours):
    """Top, bottom, left and right of what a grid shows in each colour."""
    pixels = np.asarray(grid)
    found = []
    for colour in colours:
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        found.append((rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
        assert len(rows) == (found[-1][1] - found[-1][0]) * (found[-1][3] - found[-1][2]), "something lies over it"
    return found


def test_the_grid_shows_every_image_under_its_title():
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10), (10, 250, 250)]
    images = np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in colours])
    titles = ["a", "b\n→ $c$", "W" * 60, "d", "e\x1b[0m"]
    grid = draw_image_grid(images, titles, "a heading that is much longer than the name of a class may be", columns=3)
    boxes = boxes_of(grid, colours)
    assert [box[0] for box in boxes[:3]] == [boxes[0][0]] * 3
    assert boxes[3][0] == boxes[4][0] > boxes[0][1]
    assert [box[2] for box in boxes] == sorted(box[2] for box in boxes[:3]) + [box[2] for box in boxes[:2]]
    is_text = (np.asarray(grid) < 100).all(axis=2)
    for top, _, left, right in boxes:
        assert is_text[top - 20 : top, left:right].any(), "an image has no title"
        assert not is_text[:, [left - 5, min(right + 4, grid.width - 1)]][top - 45 :].any(), "a title is too wide"
    assert is_text[: boxes[0][0] - 45].any(), "there is no heading"
    assert not any(is_text[top:bottom, left:right].any() for top, bottom, left, right in boxes)


def test_the_grid_shows_the_pixels_of_small_images_and_writes_what_it_is_given():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    drawn = {title: np.asarray(draw_image_grid(image, [title], "x")) for title in ("$c$", "c", "e\x1b", "e?")}
    assert not np.array_equal(drawn["$c$"], drawn["c"])  # no formula
    assert np.array_equal(drawn["e\x1b"], drawn["e?"])
    below = drawn["c"][-191:-5, 5:191]
    assert np.array_equal(below[11::23, 11::23][:8, :8], image[0])


@pytest.mark.parametrize("count", [2, 3, 40])
def test_the_record_shows_the_curves(count):
    epochs = [
        {"epoch": e + 1, "train_loss": 2.0 - e / count, "val_loss": 2.0 - e / count / 2, "val_accuracy": e / count}
        for e in range(count)
    ]
    drawn = np.asarray(draw_curves(epochs, count)).astype(int)
    blue = (np.abs(drawn - (31, 119, 180)) < 12).all(axis=2)
    orange = (np.abs(drawn - (255, 127, 14)) < 12).all(axis=2)
    half = drawn.shape[1] // 2
    orange[:50], blue[:50] = False, False  # their names
    assert not orange[:, half:].any()  # two losses on the left, one measure on the right
    tops = [[np.nonzero(column)[0].mean() for column in curve.T if column.any()] for curve in (
        blue[:, :half], orange[:, :half], blue[:, half:]
    )]  # fmt: skip
    train, val, share = tops
    assert (np.diff(train) >= -2).all()  # falls all the way, which is down in the picture
    assert train[-1] > val[-1] + 50
    assert share[0] > share[-1] + 200
    widths = [np.nonzero(curve.any(axis=0))[0] for curve in (blue[:, :half], blue[:, half:])]
    assert all(width[-1] - width[0] > 300 for width in widths)


def test_curves_of_one_value_and_of_sets_of_classes_can_be_drawn():
    same = [{"epoch": e, "train_loss": 0.0, "val_loss": 0.0, "val_accuracy": 1.0} for e in (7, 8)]
    both = [{**entry, "val_map": 0.25 * entry["epoch"] - 1.5} for entry in same]
    pictures = [np.asarray(draw_curves(entries, 8)) for entries in (same, both)]
    assert pictures[0].shape == pictures[1].shape == (390, 806, 3)
    assert not np.array_equal(pictures[0][:, 403:], pictures[1][:, 403:])
    assert np.array_equal(pictures[0][:, :403], pictures[1][:, :403])


def test_of_equal_epochs_the_curves_name_the_one_of_the_best_model(monkeypatch):
    """Ties go to the lower validation loss, so the picture must not look for the best epoch itself."""
    shown = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, place, told, *more, **named: (
        shown.append(told), text(pen, place, told, *more, **named)
    ))  # fmt: skip
    epochs = [{"epoch": e, "train_loss": 1.0, "val_loss": 1.0 / e, "val_accuracy": 0.75} for e in (1, 2, 3)]
    draw_curves(epochs, 2)
    assert "best model: 75.00 %, epoch 2" in shown
    shown.clear()
    draw_curves(epochs, 9)
    assert not any("best" in told for told in shown)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_few_images_fill_the_grid(count):
    colour = (250, 10, 10)
    images = np.full((count, 8, 8, 3), colour, dtype=np.uint8)
    heading = "the best model's most confident mistakes, of 1 in 420 validation images"
    grid = draw_image_grid(images, ["airplane\n→ storage tanks\n98.0 %"] * count, heading)
    is_image = (np.asarray(grid) == colour).all(axis=2)
    assert grid.width == 196 * min(count, 4)
    assert is_image.mean() > (0.35 if count in (1, 5) else 0.5)
    top = np.nonzero(is_image.any(axis=1))[0][0]
    text = (np.asarray(grid) < 100).all(axis=2)[: top - 60]  # the heading, whose words are all there
    assert not text[:, [0, 1, -2, -1]].any(), "the heading is cut off"
    words = _broken(heading, 18, grid.width)
    assert " ".join(words) == heading
    assert all(_fitting(line, 18, grid.width) == line for line in words)


def test_learning_curves_hold_the_numbers():
    epochs = [{"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e, "val_accuracy": e / 10} for e in (1, 2, 3)]
    losses, accuracy = draw_learning_curves(epochs, marked=2).axes
    assert [list(axes.lines[-1].get_xdata()) for axes in (losses, accuracy)] == [[2, 2], [2, 2]]
    assert [list(line.get_ydata()) for line in losses.lines[:2]] == [[1, 1 / 2, 1 / 3], [2, 1, 2 / 3]]
    assert np.allclose(accuracy.lines[0].get_ydata(), [10, 20, 30])
    assert accuracy.get_title() == "best: 30.00 % in epoch 3"


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_learning_curves_have_whole_epochs_below_them(count):
    epochs = [{"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e, "val_accuracy": 0.5} for e in range(1, count + 1)]
    figure = draw_learning_curves(epochs, marked=1)
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        ticks = axes.get_xticks()
        assert len(ticks) > 0
        assert all(tick == round(tick) for tick in ticks), ticks


def test_principal_components_keep_distances_and_are_sorted():
    generator = np.random.default_rng(0)
    for shape in ((9, 200), (300, 100)):
        few = generator.normal(size=(shape[0], 5)) * (9, 7, 5, 3, 1)
        vectors = (few @ np.linalg.qr(generator.normal(size=(shape[1], 5)))[0].T + 4).astype(np.float32)
        found = principal_components(vectors, 8)
        assert found.shape == (shape[0], 8)
        spread = found.std(axis=0)
        assert (spread[:4] > spread[1:5]).all()
        assert np.allclose(spread[5:], 0, atol=1e-2)
        assert np.allclose(np.linalg.norm(found[0] - found[1]), np.linalg.norm(vectors[0] - vectors[1]), rtol=1e-3)
    assert principal_components(np.eye(3), 8).shape == (3, 3)
    assert np.isfinite(principal_components(np.zeros((1, 200)), 8)).all()


def test_a_table_is_aligned():
    assert text_table(("name", "n"), [("a", 10), ("longer", 2)]) == "name     n\na       10\nlonger   2"


def test_titles_of_several_classes_are_broken_into_lines():
    assert in_lines("bare soil, grass") == "bare soil, grass"
    assert in_lines("buildings, cars, pavement, trees") == "buildings, cars,\npavement, trees"
    assert in_lines("mediumresidentialandsomemore") == "mediumresidentialandsomemore"
    assert in_lines("a\nb") == "a\\nb"
    many = in_lines(", ".join(f"class {number}" for number in range(30)))
    assert many.count("\n") == 2
    assert many.endswith(" …")


def test_learning_curves_of_several_classes_are_those_of_their_mean_average_precision():
    epochs = [{"epoch": e, "train_loss": 1, "val_loss": 1, "val_accuracy": 0.1, "val_map": e / 4} for e in (1, 2)]
    axes = draw_learning_curves(epochs, marked=1).axes[1]
    assert axes.get_ylabel() == "validation mAP, %"
    assert "50.00 % in epoch 2" in axes.get_title()
