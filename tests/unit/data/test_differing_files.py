"""What differs between the files of a data set is said by check and training, and what can be is evened out."""

import json
import struct

import numpy as np
import pytest
import torch
from geotiffs import BANDS, CLASSES, rasterio, said, tile, write_geotiff, write_set
from PIL import Image

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.image_traits import Traits, describe_traits
from sat_vg.backbone_finetuning.data.reading.bands import find_bands
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.geo import GeoReader, decoder_of, decoder_of_files
from sat_vg.backbone_finetuning.training.preparation import check_images, load_splits
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles, Preprocessing


@pytest.fixture
def check(command):
    """The check's findings on a folder, as the program that asks for JSON gets them."""
    return lambda root, *arguments: json.loads(command("check", root, "--json", *arguments)[1])


def newer(values, profile, number):
    """Sentinel-2's change of 2022: the same reflectance with 1000 more, and an offset that takes it off."""
    if number % 2:
        values = values + np.uint16(1000)
    return values, {**profile, "scales": 1e-4, "offsets": -0.1 * (number % 2)}


class TestScaleAndOffset:
    def test_are_applied_where_bands_are_read_and_said_to_differ(self, tmp_path, check):
        root = write_set(tmp_path / "data", change=newer)
        findings = check(root, "--bands", BANDS)
        assert "scale 0.0001 and offset -0.1 in 10 images" in said(findings)
        assert "they are applied" in said(findings)
        assert findings["mean"][0] == pytest.approx(0.1, abs=0.002)
        found = find_bands((1, 2, 3), [str(root / "field/0.tif")])
        assert found.files.scaling == "tagged"
        assert "scale 0.0001 and offset 0 applied" in found.description
        old, new = (GeoReader(found.files).read(str(root / f"field/{n}.tif")).mean().item() for n in (0, 1))
        assert old == pytest.approx(0.15, abs=0.001)
        assert new == pytest.approx(0.15, abs=0.001)

    def test_are_as_they_stand_for_models_of_before(self, tmp_path):
        root = write_set(tmp_path / "data", 1, newer)
        stored = {"bands": [1, 2, 3], "dtype": "uint16", "count": 3}
        plain = {**Preprocessing(image_size=8).to_dict(), "scale": 1.0, "files": stored}
        restored = Preprocessing.from_dict(plain)
        assert restored.files == BandFiles((1, 2, 3), "uint16", 3, scaling="ignored")
        assert decoder_of(restored, marks_missing=True).read(str(root / "field/0.tif")).mean() > 1000

    def test_a_file_with_a_scale_among_files_without_is_named(self, tmp_path, check):
        def change(values, profile, number):
            return values, {**profile, "scales": 1e-4} if number == 7 else profile

        findings = check(write_set(tmp_path / "data", change=change), "--bands", BANDS)
        assert len(findings["unreadable"]) == 2
        assert all("7.tif" in bad["path"] and "scale 0.0001" in bad["reason"] for bad in findings["unreadable"])

    @pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
    def test_a_scale_that_is_no_number_is_refused(self, tmp_path, scale):
        root = write_set(tmp_path / "data", 1, lambda v, p, n: (v, {**p, "scales": scale}))
        reason = GeoReader(BandFiles((1,), "uint16", 3)).read_or_reason(str(root / "field/0.tif"))
        assert isinstance(reason, str)
        assert "scale" in reason

    def test_of_8_bit_rgb_are_said_and_not_applied(self, tmp_path, check):
        def change(values, profile, number):
            return (values // 10).astype(np.uint8), {**profile, "scales": 1.0 + number % 2, "photometric": "RGB"}

        text = said(check(write_set(tmp_path / "data", change=change)))
        assert "scale and offset differ" in text
        assert "not applied" in text


class TestUnits:
    def test_fractions_among_stored_values_are_said(self, tmp_path, check):
        def change(values, profile, number):
            return (values / (1e4 if number % 2 else 1)).astype(np.float32), profile

        root = write_set(tmp_path / "data", change=change)
        for _ in range(2):  # the second time out of the cache
            text = said(check(root, "--bands", BANDS))
            assert "images have no value above 0." in text
            assert "different units" in text
            assert "field/" in text

    @pytest.mark.parametrize("kind", ["one unit", "dark", "of integers"])
    def test_nothing_is_said_of_one_unit(self, tmp_path, check, kind):
        def change(values, profile, number):
            values = values.astype(np.float32)
            if kind == "one unit":
                values /= 1e4
            elif number % 5 == 1:
                values[1:] = values[1:] % 2
                values[0] = values[0] % (2 if kind == "of integers" else 50) + (kind == "dark") / 2
            return values, profile

        assert "units" not in said(check(write_set(tmp_path / "data", change=change), "--bands", BANDS))


class TestOtherDifferences:
    def test_nodata_and_descriptions(self, tmp_path, check):
        def change(values, profile, number):
            names = ("B04", "B03", "B02") if number < 8 else ("B02", "B03", "B04")
            return values, {**profile, "nodata": 0 if number < 5 else None, "descriptions": names}

        text = said(check(write_set(tmp_path / "data", change=change), "--bands", BANDS))
        assert "nodata values differ between images: " in text
        assert "none in 10 images" in text
        assert "'B02', 'B03', 'B04' in 4 images" in text

    @pytest.mark.parametrize(
        ("descriptions", "bands", "contradicts"),
        [
            (("blue", "green", "red"), ("red=1", "green=2", "blue=3"), True),
            (("B02", "B03", "B04"), ("red=1", "green=2", "blue=3"), True),
            (("B04", "B03", "B02"), ("B02=1", "B04=3"), True),
            (("red", "green", "blue"), ("red=1", "green=2", "blue=3"), False),
            (("Red", "nir", "x"), ("red=1", "infrared=2"), False),
            ((), ("red=1", "green=2"), False),
        ],
    )
    def test_names_against_the_files_descriptions(self, tmp_path, descriptions, bands, contradicts):
        path = write_geotiff(tmp_path / "a.tif", tile(500, 0), descriptions=descriptions)
        warnings = find_bands(bands, [str(path)]).warnings
        assert bool(warnings) == contradicts, warnings
        if contradicts:
            assert "check the numbers" in warnings[0]

    @pytest.mark.parametrize("how", ["descriptions", "interpretation", "bands of Sentinel-2", "16-bit"])
    def test_an_order_of_colours_other_than_rgb_is_said_with_the_remedy(
        self, tmp_path, check, monkeypatch, capfd, how
    ):
        def change(values, profile, number):
            names = ("B02", "B03", "B04") if how == "bands of Sentinel-2" else ("Blue", "green", "red")
            marked = {} if how == "interpretation" or number != 4 else {"descriptions": names}
            return values if how == "16-bit" else (values // 10).astype(np.uint8), {**profile, **marked}

        root = write_set(tmp_path / "data", change=change, photometric="RGB")
        if how == "interpretation":
            for name in CLASSES:
                values = (tile(CLASSES[name], 4) // 10).astype(np.uint8)
                shape = {"count": 3, "height": 24, "width": 24, "dtype": "uint8"}
                with rasterio.open(root / name / "4.tif", "w", driver="GTiff", **shape) as file:
                    file.write(values)
                    kinds = rasterio.enums.ColorInterp
                    file.colorinterp = [kinds.blue, kinds.green, kinds.red]
        text = "2 images mark the bands as blue, green, red ("
        findings = check(root)
        assert text in said(findings)
        assert "4.tif" in said(findings)
        assert "--bands red=3,green=2,blue=1 reads" in said(findings)
        for _ in range(2):  # the second time out of the record
            check_images(FinetuneConfig(dataset_path=str(root)), load_splits(FinetuneConfig(dataset_path=str(root))))
            assert f"note: {text}" in capfd.readouterr().out
        assert "mark the bands" not in said(check(root, "--bands", "red=3,green=2,blue=1"))

    @pytest.mark.parametrize(
        ("names", "marks"),
        [
            (("Band 2 - Blue", "Band 3 - Green", "Band 4 - Red"), "blue, green, red"),
            (("blue_band", "GREEN", "red (665 nm)"), "blue, green, red"),
            (("near_infrared", "Red", "Green"), "nir, red, green"),
            (("NIR 1", "Red", "Green"), "nir, red, green"),
            (("B2", "B3", "B4"), "blue, green, red"),
            (("SR_B2", "SR_B3", "SR_B4"), "blue, green, red"),
        ],
    )
    def test_colours_are_found_in_longer_descriptions(self, tmp_path, names, marks):
        values = (tile(500, 0) // 10).astype(np.uint8)
        path = write_geotiff(tmp_path / "a.tif", values, descriptions=names, photometric="RGB")
        (text,) = describe_traits({"a": RGB_DECODER.examine(path).traits})
        assert f"1 image marks the bands as {marks} ('a')" in text

    @pytest.mark.parametrize(
        "names",
        [("red", "green", "blue"), ("B04", "B03", "B02"), ("a", "b", "c"), ("Red",), ("Band 4 (Red)", "x", "Blue nm"),
         ("B4", "B3", "B2"), ("B3", "B2", "B1"), ("Red Edge 1", "red_edge", "Coastal Blue"), ("blue/red", "B5", "x")],
    )  # fmt: skip
    def test_nothing_is_said_of_colours_in_order(self, tmp_path, names):
        values = (tile(500, 0) // 10).astype(np.uint8)
        path = write_geotiff(tmp_path / "a.tif", values, descriptions=names, photometric="RGB")
        assert describe_traits({"a": RGB_DECODER.examine(path).traits}) == []

    @pytest.mark.parametrize("how", ["nodata", "nodata of 16 bits", "grey, 0 is white", "mask", "mask, deflate"])
    def test_declared_as_missing_and_yet_shown_in_8_bit_rgb_is_said(self, tmp_path, check, command, how):
        def change(values, profile, number):
            values = (values // 10).astype(np.uint8)
            options, border = {"photometric": "RGB", "nodata": 255}, 255
            if how == "nodata of 16 bits":
                values, options["nodata"], border = values.astype(np.uint16) * 256, 65535, 65535
            elif how == "grey, 0 is white":
                values, options, border = values[:1], {"photometric": "MINISWHITE", "nodata": 9, "count": 1}, 9
            elif "mask" in how:
                options = {"photometric": "RGB", **({"compress": "deflate"} if "deflate" in how else {})}
            values[:, :6] = border
            return values, {**profile, **options}

        root = write_set(tmp_path / "data", change=change)
        if "mask" in how:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                for path in root.glob("*/*.tif"):
                    with rasterio.open(path, "r+") as file:
                        file.write_mask(np.arange(24 * 24).reshape(24, 24) >= 6 * 24)
        text = said(check(root))
        assert "20 images have pixels that the file declares as missing" in text
        assert "leave them out by --bands" in text

    @pytest.mark.parametrize("nodata", [0, 255, 7])
    def test_nothing_is_said_of_missing_pixels_that_are_black_or_few(self, tmp_path, nodata):
        values = (tile(500, 0) // 10).astype(np.uint8)
        values[:, :4], values[:, 4, :3] = 0, 255
        path = write_geotiff(tmp_path / "a.tif", values, photometric="RGB", nodata=nodata)
        assert describe_traits({"a": RGB_DECODER.examine(path).traits}) == []

    def test_a_false_colour_picture_is_said(self, tmp_path):
        values = (tile(500, 0) // 10).astype(np.uint8)
        names = ("nir", "red", "green")
        path = write_geotiff(tmp_path / "a.tif", values, descriptions=names, photometric="RGB")
        (text,) = describe_traits({"a": RGB_DECODER.examine(path).traits})
        assert "1 image marks the bands as nir, red, green ('a')" in text
        assert "--bands nir=1,red=2,green=3 reads" in text

    @pytest.mark.parametrize(
        ("kind", "arguments"),
        [("gif", ()), ("png", ()), ("webp", ()), ("tiff", ()), ("tiff", ("--bands", BANDS)),
         ("tiff", ("--rescale", "percentile"))],
    )  # fmt: skip
    def test_only_the_first_of_several_frames_is_read_and_that_is_said(self, tmp_path, check, kind, arguments):
        root = tmp_path / "data"
        for name, level in CLASSES.items():
            (root / name).mkdir(parents=True)
            for number in range(10):
                values = [tile(level // 10, level + number + frame, "uint8") for frame in range(3)]
                frames = [Image.fromarray(one.transpose(1, 2, 0)) for one in values]
                if "--rescale" in arguments:
                    frames = [Image.fromarray(one[0].astype(np.uint16) * 30) for one in values]
                others = frames[1:] if number == 4 else []
                path = (
                    root / name / f"{number}.{kind if kind != 'gif' else 'png'}"
                )  # as GIF under its own ending is none
                frames[0].save(path, kind, save_all=True, append_images=others)
        text = said(check(root, *arguments))
        assert "2 images have several frames or pages (" in text
        assert f"/4{path.suffix}'" in text
        assert "of which only the first is read" in text

    def test_the_training_says_that_frames_are_left_out(self, tmp_path, monkeypatch, capfd):
        monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
        root = write_set(
            tmp_path / "data", 4, lambda v, p, n: ((v // 10).astype(np.uint8), {**p, "photometric": "RGB"})
        )
        frames = [Image.fromarray(tile(90, seed, "uint8").transpose(1, 2, 0)) for seed in (1, 2)]
        frames[0].save(root / "field/x.webp", save_all=True, append_images=frames[1:])
        for _ in range(2):  # the second time out of the record
            config = FinetuneConfig(dataset_path=str(root))
            check_images(config, load_splits(config))
            assert "note: 1 image has several frames or pages (" in capfd.readouterr().out

    def test_overviews_and_masks_are_no_pages(self, tmp_path):
        path = write_geotiff(tmp_path / "a.tif", (tile(500, 0) // 10).astype(np.uint8), photometric="RGB")
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            file.write_mask(np.full((24, 24), 255, np.uint8))
            file.build_overviews([2, 4])
        assert path.read_bytes().count(struct.pack("<HHI", 254, 4, 1)) > 3  # overviews and their masks
        for decoder in (RGB_DECODER, GeoReader(BandFiles((1, 2, 3), "uint8", 3))):
            assert not decoder.examine(path).traits.has_more

    def test_frames_that_are_damaged_leave_the_first_one_readable(self, tmp_path):
        frames = [Image.fromarray(tile(90, seed, "uint8").transpose(1, 2, 0)) for seed in (1, 2)]
        path = tmp_path / "a.gif"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        first = RGB_DECODER.read(path)
        path.write_bytes(path.read_bytes()[:-60])
        assert torch.equal(RGB_DECODER.read(path), first)

    def test_8_bit_beside_16_bit_and_few_levels(self, tmp_path, check):
        def change(values, profile, number):
            return (values // 10).astype(np.uint8) if number == 3 else values, {**profile, "photometric": "RGB"}

        text = said(check(write_set(tmp_path / "data", change=change)))
        assert "the depth of pixels differs between images: 16-bit in 18 images" in text
        assert "3.tif" in text
        assert "no more than 7 of 256 grey levels" in text
        assert "--rescale percentile" in text

    def test_alpha_that_is_none_and_alpha_that_is_soft(self, tmp_path, check):
        def change(values, profile, number):
            infrared = tile(150, number, "uint8", 1)
            return np.concatenate([(values // 10).astype(np.uint8), infrared]), {
                **profile,
                "photometric": "RGB",
                "alpha": "YES",
            }

        root = write_set(tmp_path / "data", change=change)
        rgba = np.random.default_rng(0).integers(1, 255, (24, 24, 4), dtype=np.uint8)
        Image.fromarray(rgba).save(root / "field" / "soft.png")
        text = said(check(root))
        assert "20 images have a band marked as alpha whose values are no transparency" in text
        assert "1 image has an alpha channel with values other than 0 and full" in text
        assert "soft.png" in text

    def test_the_training_says_the_same_in_the_first_run_and_with_a_warm_record(self, tmp_path, monkeypatch, capfd):
        monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
        root = write_set(tmp_path / "data", change=newer)
        config = FinetuneConfig(dataset_path=str(root), bands=(1, 2, 3))
        splits = load_splits(config)
        decoder = decoder_of_files(find_bands((1, 2, 3), splits.train.paths).files)
        for _ in range(2):
            check_images(config, splits, decoder)
            assert "note: scale and offset differ between images" in capfd.readouterr().out

    def test_nothing_is_said_of_files_that_are_alike(self, tmp_path, check):
        assert not check(write_set(tmp_path / "data", 14), "--bands", BANDS)["warnings"]
        traits = Traits(
            "uint16",
            "soft",
            ((1e-4, -0.1),),
            True,
            (0.0, None),
            ("B04", None),
            9,
            (-9999.0,),
            5,
            ("blue", ""),
            7,
            True,
        )
        assert Traits.from_json(traits.to_json()) == traits
        assert describe_traits({"a": Traits(), "b": Traits()}) == []
