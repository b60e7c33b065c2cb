"""Windows are read without an image file between where that makes no difference, and only there."""

import numpy as np
import pytest
import torch
from PIL import Image
from scene_files import pixels, rasterio, write_scene

from sat_vg.backbone_finetuning.data.reading.bands import find_bands
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of_files
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath, parse_window_path
from sat_vg.backbone_finetuning.data.windows.scene import Window
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

WINDOW = Window(70, 30, 40, 24)


def with_tags(path, **tags):
    with rasterio.open(path, "r+") as file:
        for name, value in tags.items():
            setattr(file, name, value)
    return path


def with_mask(path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.arange(128 * 192).reshape(128, 192) % 7 > 0)
    return path


def picture(path):
    Image.fromarray(pixels(128, 192).transpose(1, 2, 0)).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


KINDS = {
    "RGB": (True, write_scene),
    "JPEG": (True, lambda path: write_scene(path, compress="jpeg")),
    "by band": (True, lambda path: write_scene(path, interleave="band")),
    "nodata": (True, lambda path: write_scene(path, nodata=60)),
    "PNG": (True, picture),
    "scaled": (False, lambda path: with_tags(write_scene(path), scales=(0.5,) * 3)),
    "described": (False, lambda path: with_tags(write_scene(path), descriptions=("Blue", "Green", "Red"))),
    "masked": (False, lambda path: with_mask(write_scene(path))),
    "alpha": (False, lambda path: write_scene(path, pixels(128, 192, 4), photometric="RGB", alpha="YES")),
    "grey": (False, lambda path: write_scene(path, pixels(128, 192, 1))),
    "uint16": (False, lambda path: write_scene(path, pixels(128, 192, dtype="uint16") * 300)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_has_the_pixels_and_traits_of_its_image_file(tmp_path, kind):
    is_direct, write = KINDS[kind]
    window = WindowPath(str(write(tmp_path / "scene.tif")), WINDOW)
    assert (window.rgb() is not None) == is_direct
    read, from_file = RGB_DECODER.picture(window), RGB_DECODER.decode(window.open())
    assert torch.equal(read.pixels, from_file.pixels)
    assert read.traits == from_file.traits
    assert read.pixels.shape == (3, 24, 40)
    assert read.pixels.stride() == from_file.pixels.stride()


def holes(values):
    values = values.copy()
    values[:, 20:40, 60:90] = 0 if values.dtype.kind in "ui" else np.nan
    return values


def nearly_binary():
    """A fourth band that is alpha only to those who know that it was compressed with losses."""
    values = pixels(128, 192, 4)
    values[3] = np.where(np.arange(192) < 90, 250, 3)
    return values


BANDS = {
    "uint16": (True, lambda path: write_scene(path, pixels(128, 192, 6, "uint16"))),
    "nodata": (True, lambda path: write_scene(path, holes(pixels(128, 192, 6, "uint16")), nodata=0)),
    "nodata by band": (True, lambda path: write_scene(path, holes(pixels(128, 192, 6)), nodata=0, interleave="band")),
    "float32": (True, lambda path: write_scene(path, holes(pixels(128, 192, 6, "float32")))),
    "scaled": (
        True,
        lambda path: with_tags(write_scene(path, pixels(128, 192, 6, "int16")), scales=(0.5,) * 6, offsets=(3,) * 6),
    ),
    "masked": (True, lambda path: with_mask(write_scene(path, pixels(128, 192, 6)))),
    "alpha": (True, lambda path: write_scene(path, pixels(128, 192, 4), photometric="RGB", alpha="YES")),
    "alpha, lossy": (
        True,
        lambda path: write_scene(path, nearly_binary(), photometric="RGB", alpha="YES", compress="jpeg"),
    ),
}


@pytest.mark.parametrize("kind", BANDS)
def test_the_bands_of_a_window_are_those_of_its_image_file(tmp_path, kind):
    is_direct, write = BANDS[kind]
    window = WindowPath(str(write(tmp_path / "scene.tif")), WINDOW)
    decoder = decoder_of_files(find_bands([3, 1, 2], [window]).files)
    assert (window.dataset() is not None) == is_direct
    read, from_file = decoder.picture(window), decoder.decode(window.open())
    assert torch.equal(read.pixels.nan_to_num(-1), from_file.pixels.nan_to_num(-1))
    assert read.traits == from_file.traits


def test_a_scene_that_is_cut_short_is_named_by_either_way(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", pixels(128, 192, 6, "uint16"), compress="none")
    decoder = decoder_of_files(find_bands([3, 1, 2], [WindowPath(str(scene), WINDOW)]).files)
    with scene.open("r+b") as file:
        file.truncate(scene.stat().st_size // 2)
    window = WindowPath(str(scene), Window(150, 100, 40, 24))
    answers = [decoder.examine(window), RGB_DECODER.examine(window)]
    assert all("is cut short or damaged" in answer and str(scene) in answer for answer in answers), answers


@pytest.mark.parametrize("content", [b"", b"II*\0\x08\0\0\0", b"no scene"])
def test_a_scene_that_cannot_even_be_opened_is_an_image_that_cannot_be_read(tmp_path, content):
    (tmp_path / "scene.tif").write_bytes(content)  # not an error that ends the check of all others
    reason = RGB_DECODER.examine(WindowPath(str(tmp_path / "scene.tif"), WINDOW))
    assert isinstance(reason, str)
    assert "scene.tif" in reason


def test_bands_that_are_not_marked_as_rgb_are_none(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", photometric="MINISBLACK")
    assert WindowPath(str(scene), WINDOW).rgb() is None


@pytest.mark.parametrize(("window", "reason"), [(WINDOW, "no value"), (Window(180, 0, 40, 24), "leads out of")])
def test_a_window_without_pixels_is_refused_either_way(tmp_path, window, reason):
    values = pixels(128, 192)
    values[:, :, :120] = 0
    path = WindowPath(str(write_scene(tmp_path / "scene.tif", values, nodata=0)), window)
    for read in (path.rgb, path.open):
        with pytest.raises(Unreadable) as error:
            read()
        assert reason in error.value.reason


def test_a_window_is_a_path_of_row_column_and_a_size_above_nothing():
    path = parse_window_path("a\nb.tif/000030_000070_40x24")
    assert path is not None
    assert (path.scene, path.window) == ("a\nb.tif", WINDOW)
    assert parse_window_path("scene.tif/000032_000064_0x0") is None
    assert parse_window_path("scene.tif/000032_000064_40x00") is None
