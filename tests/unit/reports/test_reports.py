import numpy as np

from sat_vg.backbone_finetuning.reports.figures import draw_confusion_matrix, draw_image_grid, draw_learning_curves
from sat_vg.backbone_finetuning.reports.tables import text_table


def test_the_confusion_matrix_has_the_right_cells_and_names():
    confusion = np.array([[3, 1, 0], [0, 0, 5], [0, 0, 7]])
    figure = draw_confusion_matrix(confusion, ["sea", "$x_1$", "<script>"])
    axes = figure.axes[0]
    cells = {tuple(map(round, text.get_position()))[::-1]: text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "3", (0, 1): "1", (1, 2): "5", (2, 2): "7"}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["sea", r"\$x_1\$", "<script>"]
    assert "16 validation images, 62.50 % right" in axes.get_title()
    of_test = draw_confusion_matrix(confusion, ["a", "b", "c"], "images of test")
    assert of_test.axes[0].get_title().startswith("16 images of test, 62.50 % right")
    figure.canvas.draw()  # a formula or a wild character would fail here


def test_many_classes_can_be_drawn(tmp_path):
    confusion = np.eye(200, dtype=int)
    figure = draw_confusion_matrix(confusion, [f"class {i}" for i in range(200)])
    assert not figure.axes[0].texts
    figure.savefig(tmp_path / "many.png")


def test_the_grid_shows_every_image_under_its_title(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    heading = "a heading that is much longer than the name of a class may be"
    figure = draw_image_grid(images, ["a", "b", "c", "d", "e\x1b[0m"], heading, columns=3)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["a", "b", "c", "d", "e?[0m"]
    assert all(np.array_equal(axes.images[0].get_array(), image) for axes, image in zip(shown, images, strict=True))
    assert figure.get_suptitle() == heading
    figure.savefig(tmp_path / "grid.png")


def test_learning_curves_hold_the_numbers():
    epochs = [{"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e, "val_accuracy": e / 10} for e in (1, 2, 3)]
    losses, accuracy = draw_learning_curves(epochs).axes
    assert [list(line.get_ydata()) for line in losses.lines] == [[1, 1 / 2, 1 / 3], [2, 1, 2 / 3]]
    assert np.allclose(accuracy.lines[0].get_ydata(), [10, 20, 30])
    assert accuracy.get_title() == "best: 30.00 % in epoch 3"


def test_a_table_is_aligned():
    assert text_table(("name", "n"), [("a", 10), ("longer", 2)]) == "name     n\na       10\nlonger   2"
