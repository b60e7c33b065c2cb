"""``sat-vg check`` on GeoTIFFs and on data sets that are named: it reads what the training would read."""

import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
from conftest import write_image
from geotiffs import SENTINEL_2, write_geotiff, write_tiles
from tiny_datasets import idx

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.band_statistics import measure_bands
from sat_vg.backbone_finetuning.training.preparation import check_images, choose_bands, computed_cache, load_splits
from sat_vg.backbone_finetuning.training.preparation import decoder_of_config as decoder_of

FOUR = "red=4,green=3,blue=2,nir=8"


@pytest.fixture
def check(command):
    return partial(command, "check")


@pytest.fixture
def tiles(tmp_path):
    return write_tiles(tmp_path / "tiles", {"train": 10, "val": 2})


def coarse(seed: int, noise: float = 0.0) -> np.ndarray:
    """A tile of 12 x 12 patches, uint16 ``[13, 48, 48]``."""
    patches = np.random.default_rng(seed).integers(200, 4000, (13, 12, 12)).repeat(4, axis=1).repeat(4, axis=2)
    factors = np.random.default_rng(99).normal(1, noise, patches.shape)
    return np.clip(patches * factors, 1, 10_000).astype(np.uint16)


def test_clean_geotiffs(check, tiles, tmp_path):
    code, out, err = check(tiles, "--bands", FOUR)
    assert (code, err) == (0, "")
    assert out.startswith("bands: red (4), green (3), blue (2), nir (8) of 13, uint16, nodata 0, as ")
    assert "36 images in 3 classes: 30 train, 6 val" in out
    assert "sizes in train: 40 x 40 (30)" in out
    assert "0 errors, 0 warnings" in out
    code, out, err = check(tiles, "--bands", FOUR, "--json")
    found = json.loads(out)  # what is told on the way is not on standard output
    assert err.startswith("bands: red (4)")
    assert found["bands"] == ["red", "green", "blue", "nir"]
    assert found["sizes"] == {"40x40": 30}

    # They are the training's numbers, which it then need not measure; nor need it decode the images again.
    config = FinetuneConfig(dataset_path=str(tiles), bands=tuple(FOUR.split(",")))
    splits = load_splits(config)
    chosen, decoder = choose_bands(config, splits), decoder_of(config, splits)
    before = (tmp_path / "cache/readable_images.npz").stat().st_mtime_ns
    checked = check_images(config, splits, decoder)
    assert (tmp_path / "cache/readable_images.npz").stat().st_mtime_ns == before
    own = measure_bands(checked.splits.train.paths, checked.contents, chosen.names, decoder, computed_cache(config))
    assert "found in" in own.note
    assert found["mean"] == list(own.mean)
    assert found["std"] == list(own.std)


def test_what_is_wrong_with_geotiffs(check, tiles):
    write_geotiff(tiles / "train/sea/a.tif", coarse(1), descriptions=SENTINEL_2, nodata=0)
    write_geotiff(tiles / "val/sea/b.tif", coarse(1, noise=0.02), descriptions=SENTINEL_2, nodata=0)
    write_geotiff(tiles / "train/sea/c.tif", coarse(2), descriptions=SENTINEL_2, nodata=0)
    write_geotiff(tiles / "train/sea/odd.tif", coarse(3)[:, :7, :5], descriptions=SENTINEL_2, nodata=0)
    write_geotiff(tiles / "train/town/empty.tif", np.zeros((13, 9, 9), np.uint16), descriptions=SENTINEL_2, nodata=0)
    write_geotiff(tiles / "train/town/twelve.tif", coarse(4)[:12])
    shutil.copy(tiles / "train/sea/train_0.tif", tiles / "val/sea/copy.tif")
    code, out, err = check(tiles, "--bands", FOUR, "--json")
    assert code == 2
    assert "error: the data have 2 errors" in err
    found = json.loads(out)
    reasons = {entry["path"].rpartition("/")[2]: entry["reason"] for entry in found["unreadable"]}
    assert sorted(reasons) == ["empty.tif", "twelve.tif"]
    assert reasons["empty.tif"].startswith("it has no value")
    assert reasons["twelve.tif"].startswith("it has 12 bands, and the first image of the training 13")
    assert [[place["path"].rpartition("/")[2] for place in group] for group in found["copies"]] == [
        ["train_0.tif", "copy.tif"]
    ]
    assert [[path.rpartition("/")[2] for path in pair] for pair in found["near_copies"]] == [["a.tif", "b.tif"]]
    assert found["sizes"]["5x7"] == 1


def test_a_band_that_tells_nothing_stops_a_training(check, tmp_path):
    for number, name in enumerate(("a", "b")):
        for index in range(3):
            tile = coarse(10 * number + index)[:4]
            tile[3] = 7
            write_geotiff(tmp_path / "flat" / name / f"{index}.tif", tile)
    code, out, _ = check(tmp_path / "flat", "--bands", "1,2,3,haze=4")
    assert code == 2
    assert "error: band 'haze' is 7 at every pixel of the training images" in out
    assert "mean and deviation" not in out


def test_bands_that_cannot_be(check, tiles, class_folders, monkeypatch):
    for arguments, message in (
        ((tiles,), "it is a TIFF with 13 bands"),
        ((tiles, "--bands", "B04,B77"), "has no single band that is called 'B77'"),
        ((tiles, "--bands", "14"), "so there is none of number 14"),
        ((tiles, "--bands", "B04,,B03"), "--bands B04,,B03: must be a list of bands"),
        ((tiles, "--bands", "4, 4"), "bands = [4, 4]: '4' comes twice"),
        ((class_folders, "--bands", "1,2,3"), "none of the 27 training images is a GeoTIFF that can be read"),
        (("--bands", "1", "--dataset", "mnist"), "dataset = 'mnist' is RGB; leave one of the two out"),
    ):
        code, out, err = check(*arguments)
        assert code == 2, arguments
        assert message in out + err, arguments
    from sat_vg.backbone_finetuning.data.reading import gdal

    monkeypatch.setitem(sys.modules, "rasterio", None)  # as importing it fails where it is not installed
    gdal.require_rasterio.cache_clear()
    code, _, err = check(tiles, "--bands", FOUR)
    assert code == 2
    assert "pip install 'sat_vg[geo]'" in err


def test_a_named_data_set(check, tmp_path):
    idx(tmp_path / "copy", "MNIST", train=40, test=10)
    code, out, err = check("--dataset", "mnist", tmp_path / "copy", "--seed", 3)
    assert (code, err) == (0, "")
    told = "50 images in 10 classes (MNIST), which has no val, so val is 20% of train by seed 3: 30 train, 10 val, 10"
    assert told in out
    code, out, err = check(tmp_path / "copy", "--dataset=mnist", "--val_fraction", "0.5", "--json")
    assert code == 0
    assert json.loads(out)["classes"]["0 - zero"] == {"train": 2, "val": 2, "test": 1}
    for number in range(6):
        for name in ("Forest", "SeaLake"):
            path = tmp_path / f"cache/datasets/eurosat/eurosat/2750/{name}/{name}_{number}.jpg"
            write_image(path, (9, 99, 9), number + 10 * len(name))
    code, out, err = check("--dataset", "eurosat")  # where a training looks for it without a folder
    assert code == 0, err
    assert "12 images in 2 classes (EuroSAT), split by seed 0: 10 train, 2 val" in out


def test_what_names_no_images(check, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])  # where nobody listens
    for arguments, message in (
        ((), "there is nothing to check: name a folder of images or a .csv table, or a known data set"),
        (("--dataset", "eurosatt"), "dataset = 'eurosatt': must be eurosat or mnist or"),
        (("--dataset", "mnist", "images.csv"), "is a table, but has to be the folder of a copy"),
        (("--dataset", "mnist", "--val_split", "test"), "has no effect with dataset = 'mnist'"),
        (("--dataset", "mnist", tmp_path / "nowhere"), "nowhere' with a copy of MNIST; check --dataset_path"),
        (("--dataset", "mnist"), "By hand: bring train-images-idx3-ubyte"),
    ):
        code, _, err = check(*arguments)
        assert code == 2, arguments
        assert message in err, (arguments, err)
