"""Vectors of windows with their places, and the windows that are the most like one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scene_files import PLACES, at, pixels, rasterio, write_scene

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.scenes.similarity import nearest, read_index


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best_model.pt"
    FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32).save_checkpoint(path)
    return path


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_vectors_of_windows_and_what_is_like_them(command, tmp_path, checkpoint, ending):
    values = pixels(96, 128)
    values[:, :32, :32] = 0
    write_scene(tmp_path / "scene.tif", values, nodata=0)
    index = f"index.{ending}"
    code, out, err = command("extract", checkpoint, "scene.tif", "--size", 32, "--stride", 16, "--out", index)
    assert code == 0, err
    assert "34 windows of 32 x 32 pixels of 1 scene, not labelled, 1 without a value left out" in out
    found = read_index(tmp_path / index)
    assert found.vectors.shape == (34, 512)
    assert found.about["scenes"] == {"scene.tif": "EPSG:32632"}
    if ending == "npz":
        data = np.load(index)
        assert data["window"][0].tolist() == [16, 0, 32, 32]
        assert tuple(data["centre"][0]) == at(PLACES["utm"][1], 32, 16)
    query = "scene.tif/000032_000064_32x32"
    assert query in found.paths
    code, out, err = command("search", index, query, "--top", 5)
    assert code == 0, err
    assert out.splitlines()[1].split() == ["1", "1.0000", query]
    features = json.loads(Path("hits.geojson").read_text())["features"]
    assert [each["properties"]["rank"] for each in features] == [1, 2, 3, 4, 5]
    assert features[0]["properties"]["path"] == query
    own = rasterio.warp.transform_geom("EPSG:4326", "EPSG:32632", features[0]["geometry"])
    assert np.allclose(own["coordinates"][0][0], at(PLACES["utm"][1], 64, 32), atol=1e-3)
    assert Image.open("hits.png").size[0] > 300
    # The same pixels as an image of their own: the same vector, by the model that the index names.
    Image.fromarray(values[:, 32:64, 64:96].transpose(1, 2, 0)).save("chip.png")
    code, out, err = command("search", index, "chip.png", "--top", 1, "--out", "alone")
    assert code == 0, err
    assert out.splitlines()[1].split()[1:] == ["1.0000", query]


def test_nearest_is_exact():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(5000, 16)).astype(np.float16)
    vectors[7] = 0
    query = generator.normal(size=16).astype(np.float32)
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wanted = np.nan_to_num(wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query))
    places, cosines = nearest(vectors, query, 50)
    assert np.allclose(cosines, np.sort(wanted)[::-1][:50], atol=1e-3)
    assert np.allclose(wanted[places], cosines, atol=1e-3)


@pytest.fixture(scope="module")
def index(checkpoint, tmp_path_factory) -> dict:
    """What a file of the vectors of twelve windows holds, beside its scene."""
    from sat_vg.backbone_finetuning.commands.functions import extract

    folder = tmp_path_factory.mktemp("index")
    scene = write_scene(folder / "scene.tif", pixels(96, 128))
    return dict(np.load(extract(checkpoint, scene, size=32, out=folder / "index.npz")))


def test_vectors_without_a_direction_are_like_nothing(command, index, tmp_path):
    vectors = index["pooled"].copy()
    vectors[2], vectors[5], vectors[7] = np.nan, np.inf, 0
    np.savez("odd.npz", **{**index, "pooled": vectors})
    query = str(index["paths"][0])
    code, _, err = command("search", "odd.npz", query, "--top", 50)
    assert (code, err) == (0, "")
    found = json.loads(Path("hits.geojson").read_text())["features"]  # NaN would be no JSON
    assert [each["properties"]["similarity"] for each in found][-3:] == [0, 0, 0]
    assert {each["properties"]["path"] for each in found[-3:]} == {str(index["paths"][place]) for place in (2, 5, 7)}
    code, _, err = command("search", "odd.npz", str(index["paths"][5]))
    assert (code, err.count("\n"), "has no direction" in err) == (2, 1, True)


def test_foreign_files_in_one_sentence(command, index, tmp_path):
    chip = Image.fromarray(pixels(32, 32).transpose(1, 2, 0))
    chip.save("chip.png")
    vectors = index["pooled"]
    for changed in (
        {"pooled": vectors[:3]}, {"pooled": vectors[0]}, {"pooled": vectors[:0], "paths": index["paths"][:0]},
        {"pooled": vectors.astype(str)}, {"paths": np.arange(12)}, {"about": np.array("[1]")},
    ):  # fmt: skip
        np.savez("odd.npz", **{**index, **changed})
        code, _, err = command("search", "odd.npz", "chip.png")
        assert (code, err.count("\n"), "is no file of vectors" in err) == (2, 1, True), (changed, err)


def test_other_weights_of_the_same_network_are_another_model(command, index, tmp_path):
    """Their vectors are of another space: the cosines would mean nothing."""
    np.savez("index.npz", **index)
    Image.fromarray(pixels(32, 32).transpose(1, 2, 0)).save("chip.png")
    other = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, seed=7)
    other.save_checkpoint(tmp_path / "other.pt")
    assert command("search", "index.npz", "chip.png")[0] == 0
    code, _, err = command("search", "index.npz", "chip.png", "--checkpoint", "other.pt")
    assert (code, err.count("\n"), "is not the model of 'index.npz'" in err) == (2, 1, True), err


def test_what_lies_there_already(command, index, tmp_path):
    np.savez("index.npz", **index)
    query = str(index["paths"][0])
    for out in (".", ".."):
        code, _, err = command("search", "index.npz", query, "--out", out)
        assert (code, err.count("\n"), "give a name" in err) == (2, 1, True), err
    Image.fromarray(pixels(32, 32).transpose(1, 2, 0)).save("hits.png")
    before = Path("hits.png").read_bytes()
    code, _, err = command("search", "index.npz", "hits.png")
    assert (code, "is the query" in err, Path("hits.png").read_bytes()) == (2, True, before)
    assert command("search", "index.npz", query)[0] == 0
    assert Path("hits.geojson").exists()
    np.savez("index.npz", **{**index, "paths": np.array([f"{number}.png" for number in range(12)])})
    assert command("search", "index.npz", "0.png")[0] == 0
    assert not Path("hits.geojson").exists()  # these hits have no place


def test_a_sheet_shows_the_first_hits(command, index, tmp_path):
    paths = np.repeat(index["paths"], 500)
    np.savez("index.npz", **{**index, "paths": paths, "pooled": np.repeat(index["pooled"], 500, axis=0)})
    code, out, err = command("search", "index.npz", str(paths[0]), "--top", 3000)
    assert code == 0, err
    assert "written: hits.png with the first 60, hits.geojson" in out
    assert Image.open("hits.png").size[1] < 5000
    assert len(json.loads(Path("hits.geojson").read_text())["features"]) == 3000


def test_bad_input_in_one_sentence(command, tmp_path, checkpoint):
    write_scene(tmp_path / "scene.tif")
    assert command("extract", checkpoint, "scene.tif", "--size", 64, "--out", "index.npz")[0] == 0
    other = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=48)
    other.save_checkpoint(tmp_path / "other.pt")
    cases = {
        ("none.npz", "scene.tif"): "is no file of vectors",
        ("scene.tif", "scene.tif"): "is no file of vectors (it is neither .npz nor .parquet)",
        ("index.npz", "none.png"): "there is no such file",
        ("index.npz", "scene.tif/000500_000500_64x64"): "leads out of the scene",
        ("index.npz", "scene.tif", "--checkpoint", "other.pt"): "is not the model of 'index.npz'",
    }
    for given, message in cases.items():
        code, _out, err = command("search", *given)
        assert (code, err.count("\n"), message in err) == (2, 1, True), (given, err)
    assert not list(tmp_path.glob("hits*"))


def test_faiss_finds_what_numpy_finds(monkeypatch):
    pytest.importorskip("faiss", reason="FAISS compares above a million vectors: pip install 'sat_vg[search]'")
    generator = np.random.default_rng(0)
    vectors, query = generator.normal(size=(3000, 32)).astype(np.float32), generator.normal(size=32)
    places, cosines = nearest(vectors, query, 20)
    monkeypatch.setattr("sat_vg.scenes.similarity._MOST_EXACT", 1000)
    others, found = nearest(vectors, query, 20)
    assert np.array_equal(places, others)
    assert np.allclose(cosines, found, atol=1e-6)


def test_without_faiss_a_sentence(monkeypatch):
    monkeypatch.setattr("sat_vg.scenes.similarity._MOST_EXACT", 10)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="install FAISS: pip install"):
        nearest(np.ones((20, 4), np.float32), np.ones(4, np.float32), 5)
