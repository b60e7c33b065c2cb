"""GeoTIFFs with 13 bands from folders to the extractor, as users run it."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from geotiffs import SENTINEL_2, rasterio, sentinel_2, write_geotiff, write_tiles
from PIL import Image

from sat_vg.backbone_finetuning.commands.evaluate.cli import main as evaluate
from sat_vg.backbone_finetuning.commands.export.cli import main as export
from sat_vg.backbone_finetuning.commands.extract.cli import main as extract
from sat_vg.backbone_finetuning.commands.predict.cli import main as predict
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles

pytestmark = pytest.mark.recipe

FOUR = "red=4,green=3,blue=2,nir=8"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles") / "data", {"train": 8, "val": 3})


def test_thirteen_bands_by_their_own_names_from_random_weights(train_here, tiles):
    run = train_here(
        "--dataset_path",
        tiles,
        "--backbone",
        "resnet18",
        "--bands",
        ",".join(SENTINEL_2),
        "--num_epochs",
        6,
        draws=True,
    )
    assert run.code == 0, run.err
    assert "bands: B01 (1), B02 (2)" in run.out
    assert "band statistics of 24 training images: made in" in run.out
    assert "decoded images: not kept" in run.out
    assert run.epochs[-1]["val_accuracy"] > 0.5

    model = FineTuneModel.load_checkpoint(run.best_model)
    assert model.preprocessing.bands == SENTINEL_2
    assert model.preprocessing.files == BandFiles(SENTINEL_2, "uint16", 13, scaling="plain")
    values = np.stack([rasterio.open(path).read() for path in sorted((tiles / "train").rglob("*.tif"))])
    missing = np.where(values == 0, np.nan, values.astype(np.float64))
    np.testing.assert_allclose(model.preprocessing.mean, np.nanmean(missing, axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(model.preprocessing.std, np.nanstd(missing, axis=(0, 2, 3)), rtol=1e-9)

    extractor = model.get_feature_extractor()
    assert extractor.in_channels == 13
    raw = torch.from_numpy(sentinel_2("sea", 5, size=64).astype(np.float32))[None]
    assert extractor(extractor.normalise(raw))["layer4"].shape == (1, 512, 2, 2)
    image = decoder_of(model.preprocessing).read(str(tiles / "val/sea/val_0.tif"))
    assert torch.equal(
        extractor.transforms()(image), model.preprocessing.normalise(model.preprocessing.geometry()(image))
    )
    for name in ("training_images.png", "confusion_matrix.png"):
        assert (run.folder / "logs" / name).stat().st_size > 5000
    picture = np.asarray(Image.open(run.folder / "logs/training_images.png").convert("RGB"))
    assert picture[60:].std() > 30  # not black, and not one colour


def test_rgb_weights_land_on_the_right_bands(train_here, tiles, tmp_path):
    start = FineTuneModel("resnet18", 7, pretrained=False, image_size=32, seed=3)
    torch.save(start.network.state_dict(), tmp_path / "rgb.pth")
    run = train_here(
        "--dataset_path", tiles, "--bands", "nir=8,blue=2,green=3,red=4", "--pretrained", "true", "--weights",
        tmp_path / "rgb.pth", "--backbone", "resnet18", "--num_epochs", 1, "--strategy", "linear_probe",
    )  # fmt: skip
    assert run.code == 0, run.err
    stem = torch.load(run.best_model, weights_only=True)["state_dict"]["conv1.weight"]
    rgb = start.network.conv1.weight.detach()
    expected = torch.stack([rgb.mean(1), rgb[:, 2], rgb[:, 1], rgb[:, 0]], 1) * (3 / 4)
    torch.testing.assert_close(stem, expected)


def test_evaluate_predict_and_extract_read_the_same_bands(train_here, tiles, tmp_path, capfd):
    run = train_here("--dataset_path", tiles, "--bands", FOUR, "--num_epochs", 2, "--mixed_precision", "false")
    assert run.code == 0, run.err
    best = max(run.epochs, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert evaluate([str(run.best_model), "--out", str(tmp_path / "evaluation")]) == 0
    content = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert content["accuracy"] == best["val_accuracy"]
    assert content["loss"] == pytest.approx(best["val_loss"], rel=1e-4)
    assert content["images"] == 9

    shutil.copy(tiles / "val/sea/val_0.tif", tmp_path / "a.tif")
    Image.new("RGB", (40, 40)).save(tmp_path / "b.tif")
    write_geotiff(tmp_path / "c.tif", sentinel_2("sea", 1)[:4])
    write_geotiff(tmp_path / "d.tif", sentinel_2("sea", 1).astype(np.float32))
    capfd.readouterr()
    images = [str(tmp_path / f"{letter}.tif") for letter in "abcd"]
    assert predict([str(run.best_model), *images, "--json", "--overlays", str(tmp_path / "looked_at")]) == 2
    answers = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    model = FineTuneModel.load_checkpoint(run.best_model)
    image = decoder_of(model.preprocessing).read(images[0])
    shares = model.predict_probabilities(model.preprocessing.normalise(model.preprocessing.geometry()(image)[None]))[
        0
    ]
    given = {entry["class"]: entry["probability"] for entry in answers[0]["predictions"]}
    for name, share in zip(model.class_names, shares.tolist(), strict=True):
        assert given[name] == pytest.approx(share, abs=1e-4)
    assert "its values are uint8, and uint16" in answers[1]["error"]
    assert "it has 4 bands, and the first image of the training 13" in answers[2]["error"]
    assert "its values are float32" in answers[3]["error"]
    overlay = np.asarray(Image.open(answers[0]["overlay"]).convert("RGB"))
    assert overlay.std() > 20

    asked = [str(run.best_model), "--format", "pt2", "--out", str(tmp_path / "x.pt2"), "--with_normalisation"]
    assert export(asked) == 2
    assert "takes uint8 images, and this model the values of GeoTIFFs (uint16)" in capfd.readouterr().err

    assert extract([str(run.best_model), str(tiles / "val"), "--out", str(tmp_path / "f.npz")]) == 0
    with np.load(tmp_path / "f.npz") as features:
        assert features["pooled"].shape == (9, 512)
        place = [str(path).endswith("sea/val_0.tif") for path in features["paths"]].index(True)
        expected = model.forward_pooled(model.preprocessing.normalise(model.preprocessing.geometry()(image)[None]))
        np.testing.assert_allclose(features["pooled"][place], expected[0].detach().numpy(), atol=1e-4)


@pytest.mark.slow
def test_workers_and_a_resumed_run_change_nothing(train_here, tiles, tmp_path):
    options = ("--dataset_path", tiles, "--bands", FOUR, "--mixed_precision", "false")
    alone = train_here(*options, folder="alone")
    assert alone.code == 0, alone.err
    with_workers = train_here(*options, "--num_workers", 2, folder="workers")
    assert with_workers.code == 0, with_workers.err
    assert "found in" in with_workers.out  # the statistics
    shutil.copytree(alone.folder, tmp_path / "cut")
    steps = sorted((tmp_path / "cut/ckpt").glob("step_*.pt"))
    assert len(steps) == 2
    steps[1].unlink()
    (tmp_path / "cut/ckpt/last.pt").unlink()
    steps[0].rename(tmp_path / "cut/ckpt/last.pt")
    resumed = train_here(*options, folder="cut")
    assert resumed.code == 0, resumed.err
    assert "going on with" in resumed.out
    for run in (with_workers, resumed):
        one, two = (torch.load(r.folder / "ckpt/last.pt", weights_only=True)["network"] for r in (alone, run))
        assert all(torch.equal(one[name], two[name]) for name in one)


class TestMessages:
    def refused(self, train_here, *arguments: object) -> str:
        run = train_here(*arguments)
        assert run.code == 2, run.err
        assert "Traceback" not in run.err
        return run.err

    def test_without_bands_the_way_to_them_is_shown(self, train_here, tiles):
        message = self.refused(train_here, "--dataset_path", tiles)
        assert "13 bands" in message
        assert "--bands" in message

    def test_bands_of_rgb_images(self, train_here, class_folders):
        assert "is a GeoTIFF" in self.refused(train_here, "--dataset_path", class_folders, "--bands", "1,2,3")

    def test_files_of_different_kinds(self, train_here, tiles, tmp_path):
        shutil.copytree(tiles, tmp_path / "data")
        write_geotiff(tmp_path / "data/train/sea/x.tif", sentinel_2("sea", 1)[:12])
        write_geotiff(tmp_path / "data/val/sea/y.tif", np.zeros((13, 9, 9), np.uint16), nodata=0)
        message = self.refused(train_here, "--dataset_path", tmp_path / "data", "--bands", FOUR)
        assert "x.tif': it has 12 bands, and the first image of the training 13" in message
        assert "y.tif': it has no value" in message
        run = train_here(
            "--dataset_path", tmp_path / "data", "--bands", FOUR, "--num_epochs", 1, "--on_bad_image", "skip",
            "--max_bad_fraction", 0.1,
        )  # fmt: skip
        assert run.code == 0, run.err
        assert len((run.folder / "logs/skipped_images.txt").read_text().splitlines()) == 2

    def test_without_rasterio(self, train_here, tiles, monkeypatch):
        from sat_vg.backbone_finetuning.data.reading import gdal

        monkeypatch.setitem(sys.modules, "rasterio", None)  # as importing it fails where it is not installed
        gdal.require_rasterio.cache_clear()
        message = self.refused(train_here, "--dataset_path", tiles, "--bands", FOUR)
        assert "pip install 'sat_vg[geo]'" in message

    @pytest.mark.slow
    def test_weights_of_other_bands(self, train_here, tiles, class_folders):
        first = train_here("--dataset_path", tiles, "--bands", "red=4,green=3,blue=2", "--num_epochs", 1)
        assert first.code == 0, first.err
        start = ("--pretrained", "true", "--weights", first.best_model)
        assert "trained on GeoTIFFs with the bands red, green, blue" in self.refused(
            train_here, "--dataset_path", class_folders, *start, "--checkpoint_dir", first.folder / "other"
        )
        again = train_here(
            "--dataset_path", tiles, "--bands", "red=4,green=3,blue=2", "--num_epochs", 1, *start, folder="again"
        )
        assert again.code == 0, again.err
        assert "band statistics: those that the weights came with" in again.out


def test_a_dry_run_shows_the_batch(train_here, tiles):
    run = train_here("--dataset_path", tiles, "--bands", FOUR, "--dry_run")
    assert run.code == 0, run.err
    assert "batch: images float32 [6, 4, 32, 32]" in run.out
