"""Values in GeoTIFFs that mean "no value", declared or not, are said and left out."""

import json
import re

import numpy as np
import pytest
import torch
from geotiffs import BANDS, said, tile, write_geotiff, write_set

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.band_statistics import measure_bands
from sat_vg.backbone_finetuning.data.checks.readable import examine_images
from sat_vg.backbone_finetuning.data.reading.bands import find_bands
from sat_vg.backbone_finetuning.data.reading.geo import GeoReader, decoder_of, decoder_of_files
from sat_vg.backbone_finetuning.training.preparation import check_images, load_splits
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles, Preprocessing


@pytest.fixture
def check(command):
    """The check's findings on a folder, as the program that asks for JSON gets them."""
    return lambda root, *arguments: json.loads(command("check", root, "--json", *arguments)[1])


class TestNodata:
    @pytest.mark.parametrize(
        ("fill", "dtype"),
        [(-9999, "int16"), (-9999, "float32"), (-32768, "int16"), (-3.4028234663852886e38, "float32"),
         (9.969209968386869e36, "float32"), (1e20, "float64"), (-1.7976931348623157e308, "float64"),
         (65535, "uint16"), (32767, "int16"), (4294967295, "uint32"), (2147483647, "int32")],
    )  # fmt: skip
    def test_undeclared_fill_values_are_missing_and_named(self, tmp_path, check, fill, dtype):
        def change(values, profile, number):
            values = values.astype(dtype)
            if number == 4:
                values[:, :6] = fill
            return values, profile

        root = write_set(tmp_path / "data", change=change)
        findings = check(root, "--bands", BANDS)
        typed = float(re.search("2 images have the value ([^ ,]+), far", said(findings))[1])
        assert np.array(typed, dtype) == np.array(fill, dtype)
        assert "4.tif" in said(findings)
        assert "--nodata" in said(findings)
        assert findings["mean"][0] == pytest.approx(1000, abs=10)
        assert findings["std"][0] < 600
        image = GeoReader(BandFiles((1, 2, 3), dtype, 3), (5.0, 6.0, 7.0)).read(str(root / "field/4.tif"))
        assert image[:, :6].unique().tolist() == [5.0, 6.0, 7.0]

    def test_values_of_a_wide_range_are_no_fill(self, tmp_path):
        values = np.linspace(-12000, 500, 3 * 576).reshape(3, 24, 24).astype(np.int16)
        values[0, 0, 0] = -9999
        path = write_geotiff(tmp_path / "a.tif", values)
        picture = GeoReader(BandFiles((1, 2, 3), "int16", 3)).examine(str(path))
        np.testing.assert_array_equal(picture.pixels.numpy(), values)
        assert picture.traits.fills == ()

    @pytest.mark.parametrize(("dtype", "level"), [("uint8", 255), ("uint16", 65535)])
    def test_the_highest_value_is_no_fill_where_others_come_near_or_it_is_a_colour(self, tmp_path, dtype, level):
        values = tile(level * 0.6 if dtype == "uint16" else 5, 1, dtype)
        values[:, :3] = level
        path = write_geotiff(tmp_path / "a.tif", values)
        picture = GeoReader(BandFiles((1, 2, 3), dtype, 3)).examine(str(path))
        np.testing.assert_array_equal(picture.pixels.numpy(), values)
        assert picture.traits.fills == ()

    @pytest.mark.parametrize(("dtype", "scale"), [("uint16", 1), ("uint8", 0.1), ("float32", 1e-4)])
    def test_black_borders_are_said_with_the_remedy_and_are_values_until_declared(
        self, tmp_path, check, monkeypatch, capfd, dtype, scale
    ):
        def change(values, profile, number):
            values = (values * scale).astype(dtype)
            if number == 4:
                values[:, :6] = 0
            return values, profile

        root = write_set(tmp_path / "data", change=change)
        text = "2 images have pixels that are 0 in all chosen bands and not declared as nodata: 25 % of "
        findings = check(root, "--bands", BANDS)
        assert text in said(findings)
        assert "4.tif" in said(findings)
        assert findings["mean"][0] < 985 * scale
        config = FinetuneConfig(dataset_path=str(root), bands=(1, 2, 3))
        splits = load_splits(config)
        check_images(config, splits, decoder_of_files(BandFiles((1, 2, 3), dtype, 3)))
        assert f"note: {text}" in capfd.readouterr().out
        declared = check(root, "--bands", BANDS, "--nodata", "0")
        assert text not in said(declared)
        assert declared["mean"][0] == pytest.approx(1000 * scale, abs=10 * scale + 0.6 * (dtype == "uint8"))

    @pytest.mark.parametrize("kind", ["dark ground", "few", "one band", "classes", "indices"])
    def test_zeros_that_are_no_border_are_not_said(self, tmp_path, kind):
        generator = np.random.default_rng(0)
        values = tile(500, 0)
        if kind == "dark ground":
            values[:, :8] = np.clip(generator.normal(2, 2, (1, 8, 24)), 0, None)
        elif kind == "few":
            values[:, 0, :5] = 0
        elif kind == "one band":
            values[1:, :8] = 0
        elif kind == "classes":
            values[:] = generator.integers(0, 5, (1, 24, 24))
        else:
            values = generator.normal(0, 0.2, (3, 24, 24)).astype(np.float32)
        path = write_geotiff(tmp_path / "a.tif", values)
        picture = GeoReader(BandFiles((1, 2, 3), values.dtype.name, 3)).examine(str(path))
        assert picture.traits.blank == 0
        np.testing.assert_array_equal(picture.pixels.numpy(), values)

    def test_an_image_of_zeros_alone_is_said(self, tmp_path):
        path = write_geotiff(tmp_path / "a.tif", np.zeros((3, 24, 24), np.uint16))
        assert GeoReader(BandFiles((1, 2, 3), "uint16", 3)).examine(str(path)).traits.blank == 100

    @pytest.mark.parametrize(
        ("dtype", "value", "typed"), [("uint16", 77, 77.0), ("float32", -0.123456789, -0.123457)]
    )
    def test_a_value_that_the_user_names_is_missing_everywhere(self, tmp_path, dtype, value, typed):
        values = tile(500, 0, dtype)
        values[:, 2:5] = value
        path = str(write_geotiff(tmp_path / "a.tif", values))
        files = find_bands((1, 2), [path], typed).files
        assert files.nodata == typed
        known = Preprocessing(image_size=8, mean=(1.0, 2.0), std=(1e6, 1e6), bands=("a", "b"), scale=1.0, files=files)
        restored = Preprocessing.from_dict(json.loads(json.dumps(known.to_dict())))
        assert restored == known
        image = decoder_of(restored).read(path)
        assert image[0, 2:5].unique().tolist() == [1.0]
        assert image[1, 2:5].unique().tolist() == [2.0]

    def test_a_value_that_the_files_cannot_hold_is_refused(self, tmp_path):
        path = str(write_geotiff(tmp_path / "a.tif", tile(500, 0)))
        for value in (-9999.0, 0.5, 70000.0):
            with pytest.raises(ConfigError, match="uint16, which has no such value"):
                find_bands((1,), [path], value)
        with pytest.raises(ConfigError, match="nodata = -9999: is for the bands"):
            FinetuneConfig(dataset_path="x", nodata=-9999.0)

    @pytest.mark.parametrize("extreme", [1e29, -1e25, 1e9])
    def test_one_patch_far_out_does_not_make_the_statistics(self, tmp_path, extreme):
        paths = []
        for number in range(20):
            values = tile(500, number, "float32", 2)
            if number == 7:
                values[1, 3:5, 3:5] = extreme
            paths.append(str(write_geotiff(tmp_path / f"{number}.tif", values)))
        files = BandFiles((1, 2), "float32", 2)
        decoder, cache = decoder_of_files(files), BoundedCache(tmp_path / "cache", 2**30)
        contents = examine_images(paths, decoder=decoder).contents
        for how in ("made in", "found in"):
            found = measure_bands(paths, contents, ("vv", "vh"), decoder, cache)
            assert how in found.note
            assert found.mean[1] == pytest.approx(500, abs=5)
            assert found.std[1] < 50
            assert len(found.warnings) == 1
            assert "band 'vh'" in found.warnings[0]
            assert f"{np.float32(extreme)} in {paths[7]!r}" in found.warnings[0]
        known = Preprocessing(
            image_size=8, mean=found.mean, std=found.std, bands=("vv", "vh"), scale=1.0, files=files
        )
        normalised = known.normalise(decoder_of(known).read(paths[7])[None])
        assert normalised.abs().max() < 10
        assert torch.equal(normalised[0, 1, 3:5, 3:5], torch.zeros(2, 2))
