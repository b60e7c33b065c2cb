"""``sat-vg tile``: which windows have which class, in any CRS, and what is refused."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scene_files import PLACES, at, feature, pixels, placed, point, polygon, rasterio, write_labels, write_scene

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.reading.geo import GeoReader
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.table import list_images, load_splits
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles


@pytest.fixture
def tile(command):
    return partial(command, "tile")


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def found(folder: Path) -> dict[str, str]:
    """Class by the window's first row and column."""
    return {path.stem.split("_", 1)[1]: path.parent.name for path in folder.rglob("*.tif")}


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "own"])
@pytest.mark.parametrize("place", PLACES)
def test_labels_of_any_crs_on_a_scene_of_any_place(tile, tmp_path, place, crs):
    """The left half is sea, the right one town; every chip lies where its pixels are."""
    crs = PLACES[place][0] if crs == "own" else crs
    scene = write_scene(tmp_path / "scene.tif", place=place)
    halves = [
        polygon("sea", 0, 0, 96, 128, place=place, crs=crs),
        polygon("town", 96, 0, 192, 128, place=place, crs=crs),
    ]
    more = {} if crs == "EPSG:4326" else {"crs": {"type": "name", "properties": {"name": crs}}}
    labels = write_labels(tmp_path / "labels.geojson", *halves, **more)
    code, _out, err = tile(scene, "--labels", labels, "--size", 32, "--out", "tiles")
    assert code == 0, err
    classes = found(tmp_path / "tiles")
    assert len(classes) == 4 * 6
    for name, label in classes.items():
        assert label == ("sea" if int(name.split("_")[1]) < 96 else "town"), name
    with rasterio.open(scene) as whole:
        for path in (tmp_path / "tiles").rglob("*.tif"):
            row, column = map(int, path.stem.split("_")[1:])
            with rasterio.open(path) as chip:
                assert chip.crs == whole.crs
                assert np.allclose(at(chip.transform, 16, 16), at(whole.transform, column + 16, row + 16), rtol=1e-15)
                window = rasterio.windows.Window(column, row, 32, 32)
                assert np.array_equal(chip.read(), whole.read(window=window))


def test_a_share_of_cover_and_the_larger_of_two(tile, tmp_path):
    write_scene(tmp_path / "scene.tif", pixels(32, 128))
    labels = [
        polygon("a", 0, 0, 13, 32),  # 40 % of the first window
        polygon("a", 32, 0, 42, 32),  # 31 % of the second
        polygon("b", 42, 0, 64, 32),  # and 69 %
        polygon("c", 64, 0, 96, 32), polygon("d", 64, 0, 96, 32),  # both all of the third
        polygon("c", 96, 0, 128, 32), polygon("d", 96, 0, 127, 32),
    ]  # fmt: skip
    write_labels(tmp_path / "labels.geojson", *labels)
    flags = ("scene.tif", "--labels", "labels.geojson", "--size", 32)
    code, out, err = tile(*flags, "--out", "half", "--on_bad_label", "skip")
    assert code == 0, err
    assert found(tmp_path / "half") == {"000000_000032": "b", "000000_000096": "c"}
    assert "left out: the class 'a' has no window: it covers 41 % of a window at most (--min_cover 0.5)" in out
    assert "1 with two classes alike" in out
    assert tile(*flags, "--out", "refused")[0] == 2
    code, _, err = tile(*flags, "--out", "third", "--min_cover", 0.3, "--on_bad_label", "skip")
    assert code == 0, err
    assert found(tmp_path / "third")["000000_000000"] == "a"
    hole = [placed([(0, 0), (128, 0), (128, 32), (0, 32), (0, 0)], "utm")]
    hole.append(placed([(0, 0), (0, 32), (64, 32), (64, 0), (0, 0)], "utm"))
    multi = {"type": "MultiPolygon", "coordinates": [hole]}
    write_labels(tmp_path / "labels.geojson", feature(3.0, multi), polygon("b", 0, 0, 64, 32))
    assert tile(*flags, "--out", "hole")[0] == 0
    assert list(found(tmp_path / "hole").values()).count("3") == 2


def test_points_and_windows_around_features(tile, tmp_path):
    write_scene(tmp_path / "scene.tif", pixels(64, 64))
    several = {"type": "MultiPoint", "coordinates": placed([(60, 60), (40, 40)], "utm")}
    empty = {"type": "Feature", "properties": {"class": "a"}, "geometry": None}
    labels = [point("a", 3, 3), point("a", 5, 5), point("b", 9, 9), feature("b", several), empty]
    write_labels(tmp_path / "labels.geojson", *labels)
    flags = ("scene.tif", "--labels", "labels.geojson", "--size", 32)
    code, out, err = tile(*flags, "--out", "grid")
    assert code == 0, err
    assert "1 feature of 'labels.geojson' without a geometry passed over" in out
    assert found(tmp_path / "grid") == {"000000_000000": "a", "000032_000032": "b"}
    code, out, err = tile(*flags, "--windows", "features", "--on_bad_label", "skip", "--out", "around")
    assert code == 0, err
    # The first three points give the corner's window, for two classes; (60, 60) is moved in, (40, 40) is centred.
    assert found(tmp_path / "around") == {"000032_000032": "b", "000024_000024": "b"}
    assert "1 with two classes alike" in out


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_table_of_windows_reads_the_pixels_of_written_tiles(tile, tmp_path, dtype):
    values = pixels(100, 160, bands=4, dtype=dtype)
    values[:, :, :20] = 0
    write_scene(tmp_path / "scene.tif", values, nodata=0, photometric="MINISBLACK", alpha="NO")
    write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 80, 100), polygon("b", 80, 0, 160, 100))
    flags = ("scene.tif", "--labels", "labels.geojson", "--size", 40, "--stride", 30)
    for more in (("--out", "tiles"), ("--virtual", "--out", "tiles.csv")):
        code, _out, err = tile(*flags, *more)
        assert code == 0, err
    assert not list(tmp_path.glob("*.tif"))[1:]
    decoder = GeoReader(BandFiles((1, 2, 4), dtype, 4))
    written, windows = (list_images(ImageQuery(path=name)) for name in ("tiles/tiles.csv", "tiles.csv"))
    assert len(written) == len(windows) > 10
    assert written.labels == windows.labels
    for path, window in zip(written.paths, windows.paths, strict=True):
        one, other = decoder.read(path), decoder.read(window)
        assert one.shape == (3, 40, 40)
        assert np.array_equal(one.numpy(), other.numpy(), equal_nan=True)
        assert np.isnan(one.numpy()).any() == (Path(path).stem.endswith("_000000"))
    # In the same order, so that a training draws the same batches.
    assert [Path(path).stem for path in load_splits(ImageQuery(path="tiles")).train.paths] == [
        f"scene_{'_'.join(path.rpartition('/')[2].split('_')[:2])}"
        for path in load_splits(ImageQuery(path="tiles.csv")).train.paths
    ]


@pytest.mark.parametrize("kind", ["palette", "mask", "alpha"])
def test_chips_keep_palette_mask_and_alpha(tile, tmp_path, kind):
    values = pixels(64, 64, bands={"palette": 1, "mask": 3, "alpha": 4}[kind])
    valid = np.arange(64) >= 20
    if kind == "alpha":
        values[3] = 255 * valid
    write_scene(tmp_path / "scene.tif", values, photometric={"palette": "PALETTE"}.get(kind, "RGB"), alpha="YES")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "scene.tif", "r+") as file:
        if kind == "palette":
            file.write_colormap(1, {number: (number, 255 - number, 7, 255) for number in range(256)})
        if kind == "mask":
            file.write_mask(np.broadcast_to(valid, (64, 64)))
    write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 32, 64), polygon("b", 32, 0, 64, 64))
    code, _, err = tile("scene.tif", "--labels", "labels.geojson", "--size", 32, "--min_valid", 0.3, "--out", "tiles")
    assert code == 0, err
    with (
        rasterio.open(tmp_path / "scene.tif") as scene,
        rasterio.open(tmp_path / "tiles/a/scene_000032_000000.tif") as chip,
    ):
        assert chip.colorinterp == scene.colorinterp
        assert chip.mask_flag_enums == scene.mask_flag_enums
        window = rasterio.windows.Window(0, 32, 32, 32)
        assert np.array_equal(chip.read(), scene.read(window=window))
        assert np.array_equal(chip.dataset_mask() > 0, scene.dataset_mask(window=window) > 0)
        assert (chip.dataset_mask() > 0).all() == (kind == "palette")
        if kind == "palette":
            assert chip.colormap(1) == scene.colormap(1)


def test_the_same_command_again_and_another_one(tile, tmp_path):
    write_scene(tmp_path / "scene.tif")
    write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 96, 128), polygon("b", 96, 0, 192, 128))
    flags = ("scene.tif", "--labels", "labels.geojson", "--size", 64)
    for more in (("--out", "tiles"), ("--virtual", "--out", "tiles.csv")):
        assert tile(*flags, *more)[0] == 0
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert tile(*flags, *more)[0] == 0
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        code, _, err = tile(*flags, *more, "--size", 32)
        assert (code, "exists and holds something else" in err) == (2, True)
    assert not list(tmp_path.glob(".*"))


def test_a_picture_has_labels_in_pixels(tile, tmp_path):
    values = pixels(64, 96)
    Image.fromarray(values.transpose(1, 2, 0)).save(tmp_path / "scene.png")
    write_labels(
        tmp_path / "labels.geojson", polygon("a", 0, 0, 48, 64, crs=None), polygon("b", 48, 0, 96, 64, crs=None)
    )
    for more in (("--out", "tiles"), ("--virtual", "--out", "tiles.csv")):
        code, _out, err = tile("scene.png", "--labels", "labels.geojson", "--size", 32, *more)
        assert code == 0, err
    windows = list_images(ImageQuery(path="tiles.csv"))
    assert windows.labels == ("a", "a", "b") * 2 or set(windows.labels) == {"a", "b"}
    for window in windows.paths:
        row, column = (int(part) for part in window.rpartition("/")[2].split("_")[:2])
        wanted = values[:, row : row + 32, column : column + 32]
        (path,) = (tmp_path / "tiles").glob(f"*/scene_{row:06d}_{column:06d}.png")
        assert np.array_equal(decode_rgb(path).numpy(), wanted)
        assert np.array_equal(decode_rgb(window).numpy(), wanted)


def test_blocks_keep_the_parts_apart(tile, tmp_path):
    write_scene(tmp_path / "scene.tif", pixels(384, 384))
    squares = [
        polygon("ab"[(row + column) % 2], *(32 * part for part in (column, row, column + 1, row + 1)))
        for row in range(12) for column in range(12)
    ]  # fmt: skip
    write_labels(tmp_path / "labels.geojson", *squares)
    flags = ("scene.tif", "--labels", "labels.geojson", "--size", 16, "--split", "blocks", "--block_size", 500)
    code, _, err = tile(*flags, "--test_fraction", 0.1, "--virtual", "--out", "tiles.csv")
    assert code == 0, err
    rows = rows_of(tmp_path / "tiles.csv")
    boxes = {part: np.array([[float(row["x"]), float(row["y"])] for row in rows if row["split"] == part])
             for part in ("train", "val", "test")}  # fmt: skip
    assert sum(map(len, boxes.values())) == len(rows) < 24 * 24
    assert len(boxes["train"]) > 200
    assert 80 < len(boxes["val"]) < 150
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        gaps = np.maximum(0, np.abs(boxes[one][:, None] - boxes[other]) - 160)
        assert np.hypot(*np.moveaxis(gaps, -1, 0)).min() >= 500 - 1e-6
    code, _out, err = tile(*flags, "--block_size", 3000, "--out", "none")
    assert (code, "leave nothing for" in err) == (2, True)


def ring(*corners: tuple[float, float]) -> dict:
    return feature("a", {"type": "Polygon", "coordinates": [placed(list(corners), "utm")]})


A = polygon("a", 0, 0, 64, 64)
BAD = {
    "no crs": ({"crs": None}, [A], "has no CRS"),
    "outside": ({}, [A, polygon("b", 400, 0, 464, 64)], "lies outside the scenes (the first: number 2)"),
    "crossing": ({}, [ring((0, 0), (64, 64), (64, 0), (0, 64), (0, 0))], "whose ring crosses itself"),
    "open": ({}, [ring((0, 0), (64, 0), (64, 64), (0, 64))], "is not closed"),
    "line": ({}, [feature("a", {"type": "LineString", "coordinates": [[9, 47], [9, 48]]})], "which covers no ground"),
    "words": ({}, [feature("a", {"type": "Point", "coordinates": ["9", None]})], "coordinates that are no numbers"),
    "no class": ({}, [A, polygon(None, 0, 0, 64, 64)], "has no class in its property 'class'"),
    "metres": (
        {},
        [polygon("a", 0, 0, 64, 64, crs="EPSG:32632")],
        "no longitude and latitude; say what they are with",
    ),
    "a path": ({}, [polygon("../a", 0, 0, 64, 64)], "cannot be the name of a folder"),
    "in nodata": (
        {"nodata": 7},
        [A, polygon("b", 64, 0, 192, 128)],
        "the class 'a' has no window: it lies in nodata",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_in_one_sentence(tile, tmp_path, case):
    profile, labels, message = BAD[case]
    values = pixels(128, 192)
    values[:, :64, :64] = 7
    write_scene(tmp_path / "scene.tif", values, **profile)
    write_labels(tmp_path / "labels.geojson", *labels)
    code, _out, err = tile("scene.tif", "--labels", "labels.geojson", "--size", 32, "--out", "tiles")
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.geojson", "scene.tif"]


def test_bad_scenes_in_one_sentence(tile, tmp_path):
    write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 96, 128), polygon("b", 96, 0, 192, 128))
    whole = write_scene(tmp_path / "scene.tif", compress=None)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[:40_000])
    write_scene(tmp_path / "other.tif", place="south")
    write_scene(tmp_path / "deep.tif", pixels(128, 192, dtype="uint16"))
    sparse = {"SPARSE_OK": True, "tiled": True, "blockxsize": 256, "blockysize": 256}
    whole_size = {"width": 60_000, "height": 60_000, "count": 3, "dtype": "uint8", "crs": "EPSG:32632"}
    rasterio.open(
        tmp_path / "hollow.tif", "w", driver="GTiff", transform=PLACES["utm"][1], **whole_size, **sparse
    ).close()
    (tmp_path / "text.tif").write_text("no image")
    cases = {
        ("cut.tif",): "is cut short or damaged",
        ("scene.tif", "other.tif"): "the scenes have different CRS",
        ("scene.tif", "deep.tif"): "the scenes differ: ",
        ("hollow.tif",): "perhaps a decompression bomb",
        ("text.tif",): "cannot read the image",
        ("none.tif",): "cannot be opened",
        ("https://example.org/scene.tif",): "is not on this machine's disk",
        ("/vsicurl/https://example.org/scene.tif",): "is not on this machine's disk",
        (".",): "cannot be opened",
    }
    before = sorted(tmp_path.iterdir())
    for scenes, message in cases.items():
        code, _out, err = tile(*scenes, "--labels", "labels.geojson", "--size", 32, "--out", "tiles")
        assert (code, err.count("\n"), message in err) == (2, 1, True), err
        assert sorted(tmp_path.iterdir()) == before
    code, _, err = tile("scene.tif", "--labels", "labels.geojson", "--size", 200)
    assert (code, "use --size 128 or smaller" in err) == (2, True)
    assert tile("scene.tif")[0] == 2
    assert json.loads((tmp_path / "labels.geojson").read_text())["features"]
