"""Deep RGB images by levels of the training images: the same numbers for every image and every command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from geotiffs import rasterio, write_geotiff
from PIL import Image

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.image_traits import describe_traits
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.reading.levels import LevelsReader, find_levels
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, DataError, UserError
from sat_vg.backbone_finetuning.utils.preprocessing import Levels, Preprocessing


def scene(seed: int, level: float = 1500) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 400, (3, 40, 40))
    return np.clip(level + noise + np.array([0, 300, 600])[:, None, None], 1, 3000).astype(np.uint16)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [str(write_geotiff(tmp_path / f"{n}.tif", scene(n), photometric="RGB")) for n in range(6)]


def expected(values: np.ndarray, levels: Levels) -> np.ndarray:
    low, high = (np.array(one)[:, None, None] for one in (levels.low, levels.high))
    return np.clip((values - low) / (high - low), 0, 1) * 255


def test_are_the_percentiles_of_all_values_by_band(paths):
    levels = find_levels(paths)
    stacked = np.stack([rasterio.open(path).read() for path in paths])
    for band in range(3):
        low, high = np.percentile(stacked[:, band], (2, 98))
        assert levels.low[band] == pytest.approx(low, abs=1)
        assert levels.high[band] == pytest.approx(high, abs=1)
    image = LevelsReader(levels).read(paths[0])
    assert image.dtype == torch.uint8
    assert len(image.unique()) > 200
    assert abs(image.numpy() - expected(scene(0), levels)).max() < 0.51


def test_black_borders_are_noted_with_the_remedy(tmp_path, paths):
    bordered = scene(6)
    bordered[:, :10] = 0
    path = str(write_geotiff(tmp_path / "bordered.tif", bordered, photometric="RGB"))
    levels = find_levels([*paths, path])
    traits = {each: LevelsReader(levels).examine(each).traits for each in (*paths, path)}
    (note,) = describe_traits(traits)
    assert note.startswith(f"1 image has pixels that are 0 in all bands and not declared as nodata: 25 % of {path!r}")
    assert "percentiles of --rescale" in note
    with rasterio.open(path, "r+") as file:  # the remedy that it names
        file.nodata = 0
    assert describe_traits({**traits, path: LevelsReader(levels).examine(path).traits}) == []
    assert find_levels([*paths, path]).low[0] > levels.low[0]


def test_scale_and_offset_are_applied(tmp_path, paths):
    shifted = write_geotiff(tmp_path / "new.tif", scene(0) + np.uint16(1000), photometric="RGB")
    for path, offset in ((paths[0], 0.0), (shifted, -0.1)):
        with rasterio.open(path, "r+") as file:
            file.scales, file.offsets = (1e-4,) * 3, (offset,) * 3
    levels = find_levels([paths[0], str(shifted)])
    assert 0.05 < levels.low[0] < 0.1
    alone = find_levels([paths[0]])
    np.testing.assert_allclose(levels.low, alone.low)
    np.testing.assert_allclose(levels.high, alone.high)
    old, new = (LevelsReader(levels).read(str(path)).int() for path in (paths[0], shifted))
    assert (old - new).abs().max() <= 1


def test_grey_png_and_jpeg_2000_and_what_is_transparent(tmp_path, paths):
    levels = find_levels(paths)
    grey = scene(1)[0]
    for name, options in (("a.png", {}), ("a.jp2", {"irreversible": False})):
        Image.fromarray(grey).save(tmp_path / name, **options)
        got = LevelsReader(levels).read(str(tmp_path / name)).numpy()
        assert abs(got - expected(grey[None].repeat(3, 0), levels)).max() < 0.51, name
    alpha = np.full((1, 40, 40), 65535, np.uint16)
    alpha[:, :9] = 0
    path = write_geotiff(tmp_path / "b.tif", np.concatenate([scene(2), alpha]), photometric="RGB", alpha="YES")
    image = LevelsReader(levels).read(str(path))
    assert not image[:, :9].any()
    assert image[:, 9:].float().mean() > 90
    nodata = scene(3)
    nodata[:, :5] = 0
    image = LevelsReader(levels).read(str(write_geotiff(tmp_path / "c.tif", nodata, photometric="RGB", nodata=0)))
    assert not image[:, :5].any()
    only = find_levels([str(tmp_path / "c.tif")])
    assert only.low[0] > 400  # what is missing does not count


def test_what_is_no_deep_rgb_is_refused_by_name(tmp_path, paths):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    reader = LevelsReader(Levels((0.0,) * 3, (1.0,) * 3))
    for name in ("a.png", "a.jpg"):
        assert isinstance(reader.read_or_reason(str(tmp_path / name)), str), name
    with pytest.raises(DataError, match=r"none of the 1 training images can be read as deep RGB.*leave it out"):
        find_levels([str(tmp_path / "a.png")])
    flat = write_geotiff(tmp_path / "flat.tif", np.full((3, 8, 8), 700, np.uint16), photometric="RGB")
    with pytest.raises(DataError, match="nearly all values of the band 'red' are 700"):
        find_levels([str(flat)])


def test_travel_with_the_preprocessing(paths):
    levels = find_levels(paths)
    known = Preprocessing(image_size=16, levels=levels)
    restored = Preprocessing.from_dict(json.loads(json.dumps(known.to_dict())))
    assert restored == known
    assert "levels" not in Preprocessing(image_size=16).to_dict()
    image = decoder_of(restored).read(paths[3])
    raw = torch.from_numpy(scene(3).astype(np.float32))
    assert torch.equal(levels.spread(raw[None]), image[None])
    assert torch.equal(levels.spread(torch.from_numpy(scene(3))), image)
    with pytest.raises(UserError, match=r"levels\.spread"):
        known.normalise(raw[None])
    for wrong in ({"low": [1, 2, 3], "high": [1, 3, 4]}, {"low": [1.0], "high": [2.0]}, {"low": 1}, [1, 2]):
        with pytest.raises(CheckpointError, match="not sound"):
            Preprocessing.from_dict({**known.to_dict(), "levels": wrong})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bands": (1, 2, 3), "dataset_path": "x"}, "rescale = 'percentile' is for RGB"),
        ({}, "8-bit RGB already"),
        ({"dataset": "eurosat"}, "8-bit RGB already"),
        ({"dataset_path": "x", "cache": "disk"}, "cache = 'disk'"),
        ({"dataset_path": "x", "rescale": "minmax"}, "none or percentile"),
    ],
    ids=str,
)
def test_settings_that_contradict_it(fields, words):
    with pytest.raises(ConfigError, match=words):
        FinetuneConfig(**{"rescale": "percentile", **fields})
