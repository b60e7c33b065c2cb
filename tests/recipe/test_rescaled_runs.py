"""Deep RGB by stored levels, bands with a value that stands for none: every command reads as the training did."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from geotiffs import write_geotiff

from sat_vg.backbone_finetuning.commands.evaluate.cli import main as evaluate
from sat_vg.backbone_finetuning.commands.extract.cli import main as extract
from sat_vg.backbone_finetuning.commands.predict.cli import main as predict
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe

LEVELS = {"field": (600, 900, 500), "sea": (300, 400, 600), "town": (1500, 1400, 1300)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """uint16 RGB of 0 to 3000, in which the high byte tells little; a strip of -1's kind, 9, is undeclared nodata."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    generator = np.random.default_rng(0)
    for name, colours in LEVELS.items():
        for split, count in (("train", 8), ("val", 3)):
            for number in range(count):
                values = np.array(colours)[:, None, None] + generator.normal(0, 60, (3, 40, 40))
                tile = np.clip(values, 100, 3000).astype(np.uint16)
                tile[:, :, :4] = 9
                write_geotiff(root / split / name / f"{number}.tif", tile, photometric="RGB")
    return root


@pytest.mark.parametrize("way", ["levels", "nodata"])
def test_evaluate_predict_and_extract_see_what_the_training_saw(train_here, scenes, tmp_path, capfd, way):
    options = {
        "levels": ("--rescale", "percentile"),
        "nodata": ("--bands", "red=1,green=2,blue=3", "--nodata", "9"),
    }[way]
    run = train_here("--dataset_path", scenes, *options, "--num_epochs", 2, "--mixed_precision", "false")
    assert run.code == 0, run.err
    model = FineTuneModel.load_checkpoint(run.best_model)
    image = decoder_of(model.preprocessing).read(str(scenes / "val/sea/0.tif"))
    if way == "levels":
        assert "levels (2nd to 98th percentile of the training images" in run.out
        assert model.preprocessing.levels is not None
        assert image.dtype == torch.uint8
        assert not image[:, :, :4].any()
    else:
        assert model.preprocessing.files.nodata == 9
        torch.testing.assert_close(
            image[:, 0, 0].double(), torch.tensor(model.preprocessing.mean).double(), rtol=1e-6, atol=0
        )
        assert min(model.preprocessing.mean) > 500
    best = max(run.epochs, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert evaluate([str(run.best_model), "--out", str(tmp_path / "evaluation")]) == 0
    content = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert content["accuracy"] == best["val_accuracy"]
    normalised = model.preprocessing.normalise(model.preprocessing.geometry()(image)[None])
    capfd.readouterr()
    assert predict([str(run.best_model), str(scenes / "val/sea/0.tif"), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    given = {entry["class"]: entry["probability"] for entry in answer["predictions"]}
    for name, share in zip(model.class_names, model.predict_probabilities(normalised)[0].tolist(), strict=True):
        assert given[name] == pytest.approx(share, abs=1e-4)
    assert extract([str(run.best_model), str(scenes / "val/sea"), "--out", str(tmp_path / "f.npz")]) == 0
    with np.load(tmp_path / "f.npz") as features:
        np.testing.assert_allclose(
            features["pooled"][0], model.forward_pooled(normalised)[0].detach().numpy(), atol=1e-4
        )
    again = train_here("--dataset_path", scenes, *options, "--num_epochs", 2, "--mixed_precision", "false")
    assert again.code == 0, again.err
    assert "has finished" in again.out
