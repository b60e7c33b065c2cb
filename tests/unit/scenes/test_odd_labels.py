"""``sat-vg tile`` on odd labels, places and names: what it makes of them, or one sentence."""

import csv
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scene_files import feature, pixels, placed, point, polygon, rasterio, rectangle, write_labels, write_scene


@pytest.fixture
def tile(command):
    return partial(command, "tile")


def rows_of(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).open()))


A = polygon("a", 0, 0, 64, 64)
ODD = {
    "properties": ([{**A, "properties": [1]}, A], {}, "cannot be used: the first, number 1, has no class"),
    "words": ([A, {**A, "properties": "a"}], {}, "number 2, has no class"),
    "geometry": ([A, {**A, "geometry": "Point"}], {}, "has no geometry of GeoJSON"),
    "text": ([A, feature("a", {"type": "Point", "coordinates": "95"})], {}, "coordinates that are no list"),
    "crs": ([A], {"crs": {"properties": [1]}}, "name their CRS in a way that is not known"),
    "no crs": ([A], {"crs": {"properties": {"name": "EPSG:999999"}}}, "crs 'EPSG:999999': there is no such CRS"),
    "parts": ([polygon("train", 0, 0, 64, 64), polygon("val", 64, 0, 128, 64)], {}, "read as the parts of a data"),
    "the table": ([polygon("tiles.csv", 0, 0, 64, 64)], {}, "cannot be the name of a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_labels_in_one_sentence(tile, tmp_path, case):
    features, more, message = ODD[case]
    write_scene(tmp_path / "scene.tif")
    write_labels(tmp_path / "labels.geojson", *features, **more)
    code, _out, err = tile("scene.tif", "--labels", "labels.geojson", "--size", 32, "--out", "tiles")
    assert (code, err.count("\n"), message in err) == (2, 1, True), err


def test_a_byte_order_mark_and_classes_that_are_true_or_false(tile, tmp_path):
    write_scene(tmp_path / "scene.tif")
    labels = write_labels(tmp_path / "labels.geojson", polygon(True, 0, 0, 96, 128), polygon(False, 96, 0, 192, 128))
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())
    code, _, err = tile("scene.tif", "--labels", labels, "--size", 64, "--out", "tiles")
    assert code == 0, err
    assert {row["label"] for row in rows_of("tiles/tiles.csv")} == {"false", "true"}


def test_labels_on_both_sides_of_the_antimeridian(tile, tmp_path):
    """A scene in degrees reaches from 179.9 to 180.1; labels beyond 180 say -180 and more, as RFC 7946 has it."""
    write_scene(tmp_path / "scene.tif", pixels(64, 64), transform=rasterio.Affine(0.2 / 64, 0, 179.9, 0, -0.01, 1),
                crs="EPSG:4326")  # fmt: skip
    sides = [
        feature(name, {"type": "Polygon", "coordinates": [rectangle(left, 1, right, 0.36)]})
        for name, left, right in (("west", 179.9, 180), ("east", -180, -179.9))
    ]
    write_labels(
        tmp_path / "labels.geojson", *sides, feature("east", {"type": "Point", "coordinates": [-179.95, 0.5]})
    )
    code, _, err = tile("scene.tif", "--labels", "labels.geojson", "--size", 32, "--out", "tiles")
    assert code == 0, err
    assert {row["window"][:5].strip(): row["label"] for row in rows_of("tiles/tiles.csv")} == {
        "0 0 3": "west", "0 32": "west", "32 0": "east", "32 32": "east",
    }  # fmt: skip


def test_a_scene_that_is_named_twice_counts_once(tile, tmp_path):
    write_scene(tmp_path / "scene.tif", pixels(64, 64))
    write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 64, 64))
    (tmp_path / "link.tif").symlink_to("scene.tif")
    code, _, err = tile("scene.tif", "./scene.tif", "link.tif", "--labels", "labels.geojson", "--size", 32)
    assert code == 0, err
    assert len(rows_of("tiles/tiles.csv")) == 4


def test_scenes_of_one_name_do_not_overwrite_each_other(tile, tmp_path):
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        place = rasterio.Affine(10, 0, 500_000 + 640 * number, 0, -10, 5_300_000)
        write_scene(tmp_path / folder / "scene.tif", pixels(64, 64, seed=number), transform=place)
    write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 128, 64))
    code, _, err = tile("a/scene.tif", "b/scene.tif", "--labels", "labels.geojson", "--size", 32)
    assert code == 0, err
    rows = rows_of("tiles/tiles.csv")
    assert len(list((tmp_path / "tiles").rglob("*.tif"))) == len(rows) == 8
    for row in rows:
        column, line, width, height = map(int, row["window"].split())
        with (
            rasterio.open(tmp_path / "tiles" / row["scene"]) as whole,
            rasterio.open(tmp_path / "tiles" / row["path"]) as chip,
        ):
            assert np.array_equal(
                chip.read(), whole.read(window=rasterio.windows.Window(column, line, width, height))
            )


@pytest.mark.parametrize(
    "split", [("random", "--val_fraction", 0.6, "--test_fraction", 0.3), ("blocks", "--block_size", 500)]
)
def test_a_class_that_is_left_without_train(tile, tmp_path, split):
    write_scene(tmp_path / "scene.tif", pixels(384, 384))
    labels = [polygon("ab"[row % 2], 0, 32 * row, 384, 32 * row + 32) for row in range(12)]
    labels.append(polygon("rare", 160, 160, 192, 192))
    hole = [placed(rectangle(0, 160, 384, 192), "utm"), placed(rectangle(160, 160, 192, 192), "utm")]
    labels[5] = feature("b", {"type": "Polygon", "coordinates": hole})
    write_labels(tmp_path / "labels.geojson", *labels)
    flags = ("scene.tif", "--labels", "labels.geojson", "--size", 32, "--split", *split)
    code, _, err = tile(*flags)
    assert (code, err.count("\n"), "leaves train without a window of 'rare'" in err) == (2, 1, True), err
    assert not (tmp_path / "tiles").exists()
    code, out, err = tile(*flags, "--on_bad_label", "skip")
    assert code == 0, err
    assert "left out: the split leaves train without a window of 'rare'" in out
    assert {row["label"] for row in rows_of("tiles/tiles.csv")} == {"a", "b"}


def test_many_points_and_overlapping_windows(tile, tmp_path):
    """The class of most points in a window, counted one by one; points on a border are the next window's."""
    write_scene(tmp_path / "scene.tif", pixels(70, 90))
    generator = np.random.default_rng(0)
    places = np.concatenate([generator.uniform(0, (90, 70), (300, 2)), generator.integers(0, (11, 8), (60, 2)) * 8])
    names = ["abc"[number] for number in generator.integers(0, 3, len(places))]
    points = [point(name, *place, crs="EPSG:32632") for name, place in zip(names, places.tolist(), strict=True)]
    write_labels(tmp_path / "labels.geojson", *points)
    code, _, err = tile("scene.tif", "--labels", "labels.geojson", "--labels_crs", "EPSG:32632", "--size", 24,
                        "--stride", 8, "--virtual", "--out", "tiles.csv")  # fmt: skip
    assert code == 0, err
    got = {tuple(map(int, row["window"].split()[:2])): row["label"] for row in rows_of("tiles.csv")}
    wanted = {}
    for row in (*range(0, 46, 8), 46):
        for column in (*range(0, 66, 8), 66):
            inside = ((places >= (column, row)) & (places < (column + 24, row + 24))).all(axis=1)
            counts = Counter(name for name, here in zip(names, inside, strict=True) if here).most_common()
            if len(counts) == 1 or counts[0][1] > counts[1][1]:
                wanted[column, row] = counts[0][0]
    assert got == wanted
    assert len(wanted) > 40


def test_places_for_the_output_that_cannot_be(tile, tmp_path, monkeypatch):
    scene = write_scene(tmp_path / "scene.tif", pixels(64, 64))
    labels = write_labels(tmp_path / "labels.geojson", polygon("a", 0, 0, 64, 64))
    (tmp_path / "other.csv").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    cases = {("--out", "."): "name a new folder", ("--virtual", "--out", "../other.csv"): "holds something else"}
    for given, message in cases.items():
        code, _, err = tile(scene, "--labels", labels, "--size", 32, *given)
        assert (code, err.count("\n"), message in err) == (2, 1, True), err
