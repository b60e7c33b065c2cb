import io

import numpy as np
import pytest
from PIL import Image

from sat_vg.backbone_finetuning.reports.overlays import draw_overlays, lay_over


@pytest.mark.parametrize(("count", "shape"), [(1, (64, 64)), (3, (40, 90)), (7, (90, 40)), (16, (32, 32))])
def test_every_image_stands_beside_its_overlay(count, shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape, 3), dtype=np.uint8)
    heats = rng.random((count, 7, 5))
    titles = [f"class {n} 97 %\nheat: a $formula_{n} with x1b\x1b" for n in range(count)]
    figure = draw_overlays(images, heats, titles, "resnet50: Grad-CAM")
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 2 * count
    for number, (left, right) in enumerate(zip(pictures[::2], pictures[1::2], strict=True)):
        assert np.array_equal(left.images[0].get_array(), images[number])
        assert np.array_equal(right.images[0].get_array(), lay_over(images[number], heats[number]))
        assert left.get_title(loc="left").startswith(f"class {number} 97 %\nheat: a \\$formula")
        assert "\x1b" not in left.get_title(loc="left")
    assert [axes.get_ylabel() for axes in figure.axes if not axes.images].count("heat") == 1
    written = io.BytesIO()
    figure.savefig(written, format="png")
    with Image.open(written) as picture:
        assert picture.size[0] > 250
    for axes in pictures:  # nothing is squeezed away by titles or the colour bar
        box = axes.get_window_extent()
        assert min(box.width, box.height) > 50
    boxes = [axes.get_window_extent() for axes in pictures]
    assert not any(a.overlaps(b.shrunk(0.9, 0.9)) for a in boxes for b in boxes if a is not b)


def test_heat_is_stretched_over_the_image_and_shows_it_through():
    grey = np.full((8, 12, 3), 128, dtype=np.uint8)
    heat = np.array([[0.0, 1.0]])
    shown = lay_over(grey, heat).astype(int)
    assert shown.shape == grey.shape
    assert (np.diff(shown.sum(-1)[0]) >= 0).all()  # inferno grows brighter with the heat, from left to right
    assert shown[:, :3].max() < 128 < shown[:, -3:].max()
    assert (shown == shown[:1]).all()
    textured = np.zeros((8, 8, 3), dtype=np.uint8)
    textured[::2] = 255
    for value in (0.0, 1.0):
        over = lay_over(textured, np.full((2, 2), value)).astype(int)
        assert (np.abs(over[0] - over[1]) > 20).all()


def test_what_does_not_fit_together_is_refused():
    images, heats = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 2, 2))
    with pytest.raises(ValueError, match="2 images, 2 heats and 1 titles"):
        draw_overlays(images, heats, ["a"], "")
    with pytest.raises(ValueError, match="2 images, 1 heats"):
        draw_overlays(images, heats[:1], ["a", "b"], "")
    with pytest.raises(ValueError, match="0 images"):
        draw_overlays(images[:0], heats[:0], [], "")
