"""Maps of scenes: the model's own probabilities, averaged over windows, at the right place."""

import csv
import json
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scene_files import PLACES, at, pixels, rasterio, write_scene
from scipy.ndimage import label

from sat_vg.backbone_finetuning.data.windows.scene import PIXELS, Scene
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.file_locks import lock_file
from sat_vg.scenes.geojson import write_regions
from sat_vg.scenes.rasters import WindowShares

NAMES = ("field", "sea", "town")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best_model.pt"
    model = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, class_names=NAMES)
    model.save_checkpoint(path)
    return path


@pytest.fixture
def predict(command, checkpoint):
    return partial(command, "predict", checkpoint)


def features_of_rasters():
    return import_module("rasterio.features")


def test_the_mean_of_all_windows_over_a_pixel():
    generator = np.random.default_rng(0)
    for height, width, size, stride in ((50, 70, 16, 5), (16, 33, 16, 16), (40, 40, 40, 7), (31, 29, 8, 3)):
        scene = Scene("", width, height, 3, "uint8", None, PIXELS, can_miss=False, is_picture=True)
        rows, columns = ([*range(0, length - size, stride), length - size] for length in (height, width))
        values = generator.random((len(rows), len(columns), 4)).astype(np.float32)
        values[generator.random(values.shape[:2]) < 0.3] = np.nan
        sums, counts = np.zeros((height, width, 4)), np.zeros((height, width, 1))
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                if np.isfinite(values[i, j, 0]):
                    sums[row : row + size, column : column + size] += values[i, j]
                    counts[row : row + size, column : column + size] += 1
        shares = WindowShares(scene, size, stride, values)
        found = np.full((height, width, 4), -1.0)
        cells = shares.cells_of(np.arange(width))
        for means, places in shares.rows(np.arange(height)):
            found[places] = means[cells]
        with np.errstate(invalid="ignore"):
            wanted = sums / counts
        assert np.allclose(found, wanted, atol=1e-6, equal_nan=True)
        classes = np.where(counts[..., 0] > 0, np.nan_to_num(wanted).argmax(-1) + 1, 0)
        assert np.array_equal(shares.classes_at(np.arange(height), np.arange(width)), classes)


def test_regions_that_meet_in_a_corner_alone_are_two(tmp_path):
    raster = np.random.default_rng(0).integers(0, 4, (12, 17), dtype=np.uint8)
    count = write_regions(tmp_path / "map.geojson", raster, rasterio.Affine.identity(), None, NAMES)
    features = json.loads((tmp_path / "map.geojson").read_text())["features"]
    wanted = {name: label(raster == number) for number, name in enumerate(NAMES, 1)}
    assert count == len(features) == sum(parts for _, parts in wanted.values())
    for name, (_, parts) in wanted.items():
        assert sum(feature["properties"]["class"] == name for feature in features) == parts
    drawn = features_of_rasters().rasterize(
        [(f["geometry"], NAMES.index(f["properties"]["class"]) + 1) for f in features], raster.shape, dtype="uint8"
    )
    assert np.array_equal(drawn, raster)


@pytest.mark.parametrize("place", PLACES)
def test_a_map_has_the_scenes_grid_and_the_models_classes(predict, tmp_path, checkpoint, place):
    values = pixels(96, 130)
    write_scene(tmp_path / "scene.tif", values, place)
    code, _out, err = predict("scene.tif", "--size", 32, "--stride", 32, "--out", "map.tif", "--probabilities")
    assert code == 0, err
    model = FineTuneModel.load_checkpoint(checkpoint)
    with rasterio.open("map.tif") as found, rasterio.open("scene.tif") as scene:
        assert (found.crs, found.transform, found.shape) == (scene.crs, scene.transform, scene.shape)
        assert found.profile["tiled"]
        assert found.profile["compress"] == "deflate"
        assert found.nodata == 0
        assert [found.tags()[f"CLASS_{number}"] for number in (1, 2, 3)] == list(NAMES)
        assert found.colormap(1)[1][3] == 255
        classes = found.read(1)
    with rasterio.open("map.probabilities.tif") as found:
        assert found.descriptions == NAMES
        assert found.transform == scene.transform
        shares = found.read()
    assert np.allclose(shares.sum(0), 1, atol=1e-5)
    assert np.array_equal(classes, shares.argmax(0) + 1)
    chip = np.ascontiguousarray(values[:, 32:64, 64:96].transpose(1, 2, 0))
    wanted = list(model.predict(chip)[0].probabilities.values())
    assert np.allclose(shares[:, 40, 70], wanted, atol=1e-5)
    assert Image.open("map.preview.png").size[0] > 400


def test_nodata_is_skipped_and_left_blank(predict, tmp_path):
    values = pixels(128, 128)
    values[:, :64, :] = 0
    values[:, 64:70, :30] = 0
    write_scene(tmp_path / "scene.tif", values, nodata=0)
    code, out, err = predict("scene.tif", "--size", 32, "--stride", 32, "--out", "map.tif")
    assert code == 0, err
    assert "8 of 32 x 32 pixels, stride 32, 8 without a value left out" in out
    with rasterio.open("map.tif") as found:
        assert np.array_equal(found.read(1) == 0, (values == 0).all(axis=0))
    write_scene(tmp_path / "empty.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    code, _, err = predict("empty.tif", "--size", 32, "--out", "none.tif")
    assert (code, "has no value" in err) == (2, True)


def test_regions_and_lines(predict, tmp_path):
    write_scene(tmp_path / "scene.tif")
    for out in ("map.tif", "map.geojson", "map.csv"):
        code, _, err = predict("scene.tif", "--size", 32, "--stride", 16, "--out", out, "--probabilities",
                               str(out != "map.geojson"))  # fmt: skip
        assert code == 0, err
    with rasterio.open("map.tif") as found:
        classes, transform, crs = found.read(1), found.transform, found.crs
    features = json.loads(Path("map.geojson").read_text())["features"]
    shapes = [
        (
            rasterio.warp.transform_geom("EPSG:4326", crs, each["geometry"]),
            NAMES.index(each["properties"]["class"]) + 1,
        )
        for each in features
    ]

    assert np.array_equal(features_of_rasters().rasterize(shapes, classes.shape, transform=transform), classes)
    lines = list(csv.DictReader(Path("map.csv").read_text().splitlines()))
    assert len(lines) == 7 * 11
    first = lines[12]
    assert first["window"] == "16 16 32 32"
    assert (float(first["x"]), float(first["y"])) == at(transform, 32, 32)
    assert first["label"] == max(NAMES, key=lambda name: float(first[name]))
    code, out, err = predict("map.csv", "--json")  # it is a table of windows
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == len(lines)
    assert answers[12]["predictions"][0]["probability"] == pytest.approx(float(first["probability"]), abs=2e-6)


def test_a_picture_without_coordinates(predict, tmp_path):
    Image.fromarray(pixels(64, 80).transpose(1, 2, 0)).save("scene.jpg")
    code, out, err = predict("scene.jpg", "--size", 32, "--out", "map.csv")
    assert code == 0, err
    assert "has no coordinates, so map.csv is in pixels" in out
    assert [line["x"] for line in csv.DictReader(Path("map.csv").read_text().splitlines())][:4] == [
        "16.0",
        "32.0",
        "48.0",
        "64.0",
    ]
    assert predict("scene.jpg", "--size", 32, "--out", "map.tif")[0] == 0
    with rasterio.open("map.tif") as found:
        assert found.shape == (64, 80)
        assert found.crs is None


def test_vectors_need_to_know_where_their_windows_lie(command, checkpoint, tmp_path):
    write_scene(tmp_path / "nowhere.tif", crs=None)
    code, _, err = command("extract", checkpoint, "nowhere.tif", "--size", 32, "--out", "index.npz")
    assert (code, err.count("\n"), "has a transform and no CRS" in err) == (2, 1, True), err
    assert not (tmp_path / "index.npz").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such names")
def test_a_name_that_is_no_text_is_refused(predict, tmp_path):
    name = os.fsdecode(b"sc\xe9ne.tif")
    write_scene(tmp_path / "scene.tif").rename(tmp_path / name)
    code, _, err = predict(name, "--size", 32, "--out", "map.tif")
    assert (code, err.count("\n"), "has a name that is not UTF-8" in err) == (2, 1, True), err


def test_what_keeps_a_map_from_being_written_is_found_before_its_windows_are_predicted(predict, tmp_path):
    write_scene(tmp_path / "scene.tif")
    (tmp_path / "file").touch()
    code, said, err = predict("scene.tif", "--size", 32, "--out", "file/map.tif")
    assert code == 1
    assert "'file/map.tif' cannot be written (" in err
    assert err.endswith("; choose another\n")
    assert "predicted" not in said
    with (tmp_path / ".map.tif.windows.tmp").open("w") as file:
        assert lock_file(file.fileno())
        code, said, err = predict("scene.tif", "--size", 32, "--out", "map.tif")
    assert code == 2
    assert "'map.tif' is being written by another process; wait for it, or choose another" in err
    assert "predicted" not in said


def test_bad_input_in_one_sentence(predict, tmp_path):
    write_scene(tmp_path / "scene.tif", compress=None)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "scene.tif").read_bytes()[:40_000])
    write_scene(tmp_path / "nowhere.tif", crs=None)
    write_scene(tmp_path / "floats.tif", pixels(64, 64, dtype="float32"))
    (tmp_path / "there.tif").touch()
    Image.fromarray(pixels(64, 64).transpose(1, 2, 0)).save(tmp_path / "w.preview.png")
    cases = {
        ("cut.tif", "--out", "map.tif"): "is cut short or damaged",
        ("nowhere.tif", "--out", "map.tif"): "has a transform and no CRS",
        ("floats.tif", "--out", "map.tif"): "cannot be read: ",
        ("none.tif", "--out", "map.tif"): "cannot be opened",
        ("s3://far/scene.tif", "--out", "map.tif"): "is not on this machine's disk",
        ("scene.tif", "--out", "map.png"): "its ending says the format",
        ("scene.tif", "--out", "there.tif"): "exists; choose another",
        ("scene.tif", "--out", "scene.tif"): "exists; choose another",
        ("w.preview.png", "--out", "w.tif"): "w.preview.png, which goes beside it, is the scene",
        ("scene.tif", "scene.tif", "--out", "map.tif"): "a map is of one scene",
        ("scene.tif", "--out", "map.tif", "--stride", 40): "leaves gaps",
        ("scene.tif", "--stride", 16): "name the map to write with --out map.tif",
        ("scene.tif", "--out", "map.tif", "--json"): "--json has no effect on a scene",
    }
    before = sorted(tmp_path.iterdir())
    for given, message in cases.items():
        code, _out, err = predict(*given, *(() if "--json" in given else ("--size", 32)))
        assert (code, err.count("\n"), message in err) == (2, 1, True), (given, err)
        assert sorted(tmp_path.iterdir()) == before
