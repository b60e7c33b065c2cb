import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from geotiffs import SENTINEL_2, rasterio, sentinel_2, write_geotiff, write_tiles
from PIL import Image

from sat_vg.backbone_finetuning.data.checks.band_statistics import combined, measure_bands, moments_of
from sat_vg.backbone_finetuning.data.checks.readable import examine_images
from sat_vg.backbone_finetuning.data.loading.augmentation import satellite
from sat_vg.backbone_finetuning.data.loading.transforms import RandomColours
from sat_vg.backbone_finetuning.data.reading.bands import find_bands
from sat_vg.backbone_finetuning.data.reading.geo import GeoReader, decoder_of, decoder_of_files
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles, Preprocessing
from sat_vg.backbone_finetuning.utils.seeding import seed_default_generator


@pytest.fixture
def tile(tmp_path: Path) -> str:
    return str(write_geotiff(tmp_path / "tile.tif", sentinel_2("field", 0), descriptions=SENTINEL_2, nodata=0))


def read(path: object, *bands: int | str, fill: tuple[float, ...] | None = None) -> np.ndarray:
    return GeoReader(find_bands(bands, [str(path)]).files, fill).read(str(path)).numpy()


def why_not(path: object, files: BandFiles) -> str:
    reason = GeoReader(files).read_or_reason(str(path))
    assert isinstance(reason, str)
    return reason


class TestBands:
    def test_by_number_and_by_description_in_the_order_that_is_asked_for(self, tile):
        expected = sentinel_2("field", 0).astype(np.float32)
        expected[expected == 0] = np.nan
        np.testing.assert_array_equal(read(tile, 4, 3, 2, 8), expected[[3, 2, 1, 7]])
        np.testing.assert_array_equal(read(tile, "B8A", "red=b04", "x=13"), expected[[8, 3, 12]])

    def test_names_come_from_the_configuration_or_from_the_file_or_from_the_number(self, tmp_path, tile):
        found = find_bands(["red=4", 3, "B02"], [tile])
        assert found.names == ("red", "B03", "B02")
        assert found.files == BandFiles((4, 3, "B02"), "uint16", 13, scaling="plain")
        for part in ("red (4), B03 (3), B02 (2) of 13", "uint16", "nodata 0"):
            assert part in found.description
        plain = write_geotiff(tmp_path / "plain.tif", sentinel_2("sea", 1)[:4])
        assert find_bands([4, "nir=1"], [str(plain)]).names == ("band4", "nir")
        assert find_bands(["B03=4", 3], [tile]).names == ("B03", "band3")  # what the user says comes first
        colours = write_geotiff(tmp_path / "c.tif", sentinel_2("sea", 1)[:3], descriptions=("Red", "Same", "Same"))
        assert find_bands([1, 2, 3], [str(colours)]).names == ("red", "band2", "band3")

    def test_what_a_file_lacks_is_refused_with_what_it_has(self, tmp_path, tile):
        with pytest.raises(
            DataError, match=r"tile.tif' has 13 bands, so there is none of number 14; its bands are 1 'B0"
        ):
            find_bands([1, 14], [tile])
        with pytest.raises(DataError, match="no single band that is called 'NIR'; its bands are 1 'B01', 2 'B02'"):
            find_bands(["NIR"], [tile])
        plain = str(write_geotiff(tmp_path / "plain.tif", sentinel_2("sea", 1)[:1]))
        with pytest.raises(DataError, match="has 1 band, so there is none of number 2; its bands have no names"):
            find_bands([2], [plain])
        with pytest.raises(DataError, match="the band 4 would come twice"):
            find_bands([4, "B04"], [tile])
        with pytest.raises(DataError, match="the name 'band1' would come twice"):
            find_bands(["band1=2", 1], [str(write_geotiff(tmp_path / "two.tif", sentinel_2("sea", 1)[:2]))])

    def test_the_first_file_that_can_be_read_decides(self, tmp_path, tile):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        (tmp_path / "b.tif").write_bytes(Path(tile).read_bytes()[:100])
        assert find_bands([4], [str(tmp_path / "a.png"), str(tmp_path / "b.tif"), tile]).names == ("B04",)
        with pytest.raises(DataError, match=r"none of the 1 training images .*a\.png': it is no TIFF"):
            find_bands([4], [str(tmp_path / "a.png")])


class TestValues:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
    def test_of_every_type_are_as_they_stand_in_the_file(self, tmp_path, dtype):
        values = np.random.default_rng(0).uniform(0, 200, (2, 9, 7)).astype(dtype)
        if np.dtype(dtype).kind != "u":
            values -= 100
        path = write_geotiff(tmp_path / "x.tif", values)
        np.testing.assert_array_equal(read(path, 2, 1), values[::-1].astype(np.float32))
        assert read(path, 2).dtype == np.float32

    def test_nodata_not_a_number_and_infinity_are_missing_by_band(self, tmp_path):
        values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        values[0, 0, 0], values[1, 1, 1], values[1, 2, 2] = -9999, np.nan, np.inf
        path = write_geotiff(tmp_path / "x.tif", values, nodata=-9999)
        missing = np.isnan(read(path, 1, 2))
        assert sorted(map(tuple, np.argwhere(missing).tolist())) == [(0, 0, 0), (1, 1, 1), (1, 2, 2)]
        filled = read(path, 1, 2, fill=(7.0, 8.0))
        assert (filled[0, 0, 0], filled[1, 1, 1], filled[1, 2, 2]) == (7, 8, 8)
        np.testing.assert_array_equal(filled[~missing], values[~missing])

    def test_a_mask_band_and_alpha_count_but_not_where_alpha_is_what_was_chosen(self, tmp_path):
        values = sentinel_2("town", 1)[:3]
        path = write_geotiff(tmp_path / "masked.tif", values)
        mask = np.full(values.shape[1:], 255, np.uint8)
        mask[:4] = 0
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            file.write_mask(mask)
        assert np.isnan(read(path, 1))[0].sum() == 4 * values.shape[2]
        bytes_ = np.random.default_rng(0).integers(1, 256, (4, 8, 8), dtype=np.uint8)
        bytes_[3, 0], bytes_[3, 1:] = 0, 255
        path = write_geotiff(tmp_path / "alpha.tif", bytes_, photometric="RGB", alpha="YES")
        with rasterio.open(path) as file:
            assert file.colorinterp[3].name == "alpha"
        assert np.isnan(read(path, 1, 2, 3))[:, 0].all()
        np.testing.assert_array_equal(read(path, 1, 4), bytes_[[0, 3]])

    def test_what_lies_beside_a_file_is_not_looked_at(self, tmp_path, tile):
        before = read(tile, 1)
        text = "<PAMDataset><PAMRasterBand band='1'><NoDataValue>400</NoDataValue></PAMRasterBand></PAMDataset>"
        Path(f"{tile}.aux.xml").write_text(text)
        np.testing.assert_array_equal(read(tile, 1), before)


class TestBadFiles:
    FILES = BandFiles((4, 3), "uint16", 13)

    def test_of_another_kind_than_the_others(self, tmp_path):
        values = sentinel_2("sea", 1)
        fewer = write_geotiff(tmp_path / "a.tif", values[:12])
        assert "it has 12 bands, and the first image of the training 13" in why_not(fewer, self.FILES)
        by_name = BandFiles(("B04",), "uint16", 13)
        assert "no single band that is called 'B04'; its bands have no names" in why_not(fewer, by_name)
        described = write_geotiff(tmp_path / "b.tif", values[:12], descriptions=SENTINEL_2[:12])
        np.testing.assert_array_equal(GeoReader(by_name).read(str(described)).numpy(), values[3:4])
        other = write_geotiff(tmp_path / "c.tif", values.astype(np.float32))
        assert "its values are float32, and uint16 in the first image" in why_not(other, self.FILES)
        complex_ = write_geotiff(tmp_path / "d.tif", values.astype(np.complex64))
        assert "its values are complex64" in why_not(complex_, self.FILES)

    def test_without_a_single_value(self, tmp_path):
        path = write_geotiff(tmp_path / "x.tif", np.zeros((13, 8, 8), np.uint16), nodata=0)
        assert "no value" in why_not(path, self.FILES)
        with pytest.raises(DataError, match=r"x\.tif'.* nodata.*; remove it"):
            GeoReader(self.FILES).read(str(path))

    def test_damaged_foreign_missing_and_endless_ones(self, tmp_path, tile):
        whole = Path(tile).read_bytes()
        for length in (0, 3, 8, 200, len(whole) // 2):
            (tmp_path / "cut.tif").write_bytes(whole[:length])
            reason = why_not(tmp_path / "cut.tif", self.FILES)
            assert "vsimem" not in reason
            assert "\n" not in reason
        Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
        assert why_not(tmp_path / "x.png", self.FILES) == "it is no TIFF"
        assert why_not(tmp_path / "none.tif", self.FILES) == "there is no such file"
        assert "no such" in why_not("/vsicurl/https://example.invalid/x.tif", self.FILES)

    def test_formats_that_name_other_files_are_none(self, tmp_path, tile):
        named = f"<SourceFilename>{tile}</SourceFilename>"
        (tmp_path / "x.tif").write_text(f"<VRTDataset rasterXSize='40' rasterYSize='40'>{named}</VRTDataset>")
        assert why_not(tmp_path / "x.tif", self.FILES) == "it is no TIFF"

    def test_a_bomb_is_refused_by_its_header(self, tmp_path):
        path = tmp_path / "bomb.tif"
        profile = {"driver": "GTiff", "width": 60_000, "height": 60_000, "count": 1, "dtype": "uint16"}
        with rasterio.open(path, "w", **profile, compress="deflate", sparse_ok=True, tiled=True):
            pass
        assert path.stat().st_size < 2**20
        why = why_not(path, BandFiles((1,), "uint16", 1))
        assert "too large" in why
        assert "60000 x 60000 pixels" in why

    def test_nothing_is_printed(self, tmp_path, capfd, caplog, recwarn):
        path = write_geotiff(tmp_path / "plain.tif", sentinel_2("sea", 1), crs=None, transform=None)
        (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:20_000])
        recwarn.clear()
        caplog.set_level("DEBUG")
        assert read(path, 1).shape == (1, 40, 40)
        assert "cut short" in why_not(tmp_path / "cut.tif", self.FILES)
        assert capfd.readouterr() == ("", "")
        assert not [warning for warning in recwarn.list if "rasterio" in warning.filename]
        assert not caplog.records


def test_a_check_in_threads_names_bad_files_and_remembers_good_ones_by_decoder(tmp_path):
    paths = [str(write_geotiff(tmp_path / f"{n}.tif", sentinel_2("sea", n), nodata=0)) for n in range(6)]
    write_geotiff(Path(paths[4]), np.zeros((13, 8, 8), np.uint16), nodata=0)
    write_geotiff(Path(paths[5]), sentinel_2("sea", 1))
    decoder = decoder_of_files(BandFiles((4, 3), "uint16", 13))
    found = examine_images(paths, record=tmp_path / "record", decoder=decoder, threads=3)
    assert [bad.path for bad in found.bad] == [paths[4]]
    assert found.contents[paths[5]] == found.contents[paths[1]]  # copies are told by their values
    assert len(set(found.contents.values())) == 4
    assert found.sizes[paths[0]] == (40, 40)
    other = decoder_of_files(BandFiles((3, 4), "uint16", 13))
    again = examine_images(paths, record=tmp_path / "record", decoder=other)
    assert not set(again.contents.values()) & set(found.contents.values())
    assert examine_images(paths, record=tmp_path / "record", decoder=decoder).contents == found.contents
    assert len(examine_images(paths, record=tmp_path / "record").bad) == 6  # as RGB none of them is known to decode


def test_a_reader_can_be_handed_to_worker_processes(tile):
    decoder = decoder_of_files(BandFiles((4, 3), "uint16", 13), (1.0, 2.0))
    copy = pickle.loads(pickle.dumps(decoder))
    assert copy.key == decoder.key
    assert torch.equal(copy.read(tile), decoder.read(tile))


class TestStatistics:
    def measured(self, paths, tmp_path, files=None, names=("red", "nir"), **options):
        decoder = decoder_of_files(files or BandFiles((4, 8), "uint16", 13))
        contents = examine_images(paths, decoder=decoder).contents
        cache = options.get("cache") or BoundedCache(tmp_path / "cache", 2**30)
        return measure_bands(paths, contents, names, decoder, cache)

    def test_are_numpys_over_all_values_that_are_there(self, tmp_path):
        write_tiles(tmp_path / "data", {"train": 4, "val": 1})
        paths = sorted(map(str, (tmp_path / "data/train").rglob("*.tif")))
        found = self.measured(paths, tmp_path)
        stacked = np.stack([rasterio.open(path).read([4, 8]) for path in paths]).astype(np.float64)
        stacked[stacked == 0] = np.nan
        assert np.isnan(stacked).any()
        np.testing.assert_allclose(found.mean, np.nanmean(stacked, axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(found.std, np.nanstd(stacked, axis=(0, 2, 3)), rtol=1e-12)
        assert "made in" in found.note
        again = self.measured(paths, tmp_path)
        assert "found in" in again.note
        assert (again.mean, again.std) == (found.mean, found.std)
        assert "made in" in self.measured(paths[1:], tmp_path).note

    def test_lose_nothing_to_a_large_offset(self):
        values = 1e6 + np.random.default_rng(0).normal(0, 1, (5, 1, 50, 50))
        images = values.astype(np.float32)
        total = moments_of(torch.from_numpy(images[0]))
        for image in images[1:]:
            total = combined(total, moments_of(torch.from_numpy(image)))
        np.testing.assert_allclose(np.sqrt(total.squares / total.count), images.astype(np.float64).std(), rtol=1e-9)

    def test_an_image_that_lacks_a_band_wholly_counts_for_the_others(self, tmp_path):
        values = sentinel_2("sea", 1)
        half = values.copy()
        half[7] = 0
        paths = [str(write_geotiff(tmp_path / f"{n}.tif", v, nodata=0)) for n, v in enumerate((half, values, half))]
        found = self.measured(paths, tmp_path)
        np.testing.assert_allclose(found.mean, [values[3].mean(), values[7].mean()])

    def test_a_band_that_tells_nothing_is_refused(self, tmp_path):
        for value, words in ((500, "'nir' is 500 at every pixel"), (0, "'nir' has no value in any")):
            values = sentinel_2("sea", 1)
            values[7] = value
            path = str(write_geotiff(tmp_path / f"{value}.tif", values, nodata=0))
            with pytest.raises(DataError, match=words):
                self.measured([path], tmp_path)

    def test_a_damaged_cache_and_one_that_cannot_be_written_cost_time_only(self, tmp_path):
        path = str(write_geotiff(tmp_path / "a.tif", sentinel_2("sea", 1), nodata=0))
        found = self.measured([path], tmp_path)
        for file in (tmp_path / "cache").glob("*/statistics.json"):
            file.write_text('{"mean": [1, 2], "std": [0, "x"]}')
        assert self.measured([path], tmp_path)[:2] == found[:2]
        (tmp_path / "file").touch()
        assert self.measured([path], tmp_path, cache=BoundedCache(tmp_path / "file", 2**30))[:2] == found[:2]


class TestAugmentation:
    def test_takes_any_number_of_bands_and_units_and_depends_on_the_seed_alone(self):
        images = torch.from_numpy(sentinel_2("town", 1).astype(np.float32))
        transform = satellite(24, "bicubic")
        outcomes = []
        for _ in range(2):
            seed_default_generator(5)
            outcomes.append(transform(images))
        assert outcomes[0].shape == (13, 24, 24)
        assert outcomes[0].dtype == torch.float32
        assert torch.equal(*outcomes)

    def test_colours_shift_and_stretch_about_the_mean_by_the_same_factors_in_all_units(self):
        image = torch.from_numpy(sentinel_2("field", 1)[:5].astype(np.float32))
        changed = []
        for scale, offset in ((1, 0), (0.001, -50)):
            seed_default_generator(3)
            changed.append((RandomColours(0.2)(image * scale + offset) - offset) / scale)
        torch.testing.assert_close(changed[0], changed[1], rtol=1e-2, atol=1.0)
        deviation, mean = torch.std_mean(image, dim=(1, 2), correction=0)
        new_deviation, new_mean = torch.std_mean(changed[0], dim=(1, 2), correction=0)
        contrasts, shifts = new_deviation / deviation, (new_mean - mean) / deviation
        assert contrasts.std() < 1e-4
        assert shifts.std() < 1e-3
        assert 0.8 <= contrasts[0] <= 1.2
        assert -0.2 <= shifts[0] <= 0.2
        assert abs(shifts[0]) > 1e-3


class TestPreprocessing:
    KNOWN = Preprocessing(
        image_size=16, mean=(500.0, 3000.0), std=(50.0, 300.0), bands=("red", "nir"), scale=1.0,
        files=BandFiles((4, "B08"), "uint16", 13),
    )  # fmt: skip

    def test_round_trip_as_plain_data_and_nothing_new_in_that_of_rgb(self):
        plain = self.KNOWN.to_dict()
        assert plain["files"] == {"bands": [4, "B08"], "dtype": "uint16", "count": 13, "scaling": "applied"}
        assert Preprocessing.from_dict(plain) == self.KNOWN
        assert set(Preprocessing(image_size=8).to_dict()) == {"image_size", "mean", "std", "interpolation", "bands"}

    @pytest.mark.parametrize(
        "wrong",
        [
            {"scale": 0.0},
            {"scale": float("nan")},
            {"scale": "1"},
            {"files": {"bands": [4], "dtype": "uint16", "count": 13}},
            {"files": {"bands": [4, 14], "dtype": "uint16", "count": 13}},
            {"files": {"bands": [0, 4], "dtype": "uint16", "count": 13}},
            {"files": {"bands": 4, "dtype": "uint16", "count": 13}},
            {"files": {"bands": [4, 8], "dtype": 16, "count": 13}},
            {"files": {"bands": [4, 8]}},
            {"files": [4, 8]},
        ],
        ids=str,
    )
    def test_what_is_not_sound_is_refused(self, wrong):
        from sat_vg.backbone_finetuning.utils.errors import CheckpointError

        with pytest.raises(CheckpointError, match="not sound"):
            Preprocessing.from_dict({**self.KNOWN.to_dict(), **wrong})

    def test_missing_values_end_as_zero_and_the_image_is_left_as_it_was(self, tile):
        image = decoder_of(self.KNOWN).read(tile)
        before = image.clone()
        normalised = self.KNOWN.normalise(image[None])[0]
        assert torch.equal(image, before)
        raw = torch.from_numpy(sentinel_2("field", 0)[[3, 7]].astype(np.float32))
        expected = (raw - torch.tensor([500.0, 3000.0]).view(2, 1, 1)) / torch.tensor([50.0, 300.0]).view(2, 1, 1)
        torch.testing.assert_close(normalised, torch.where(raw == 0, 0.0, expected))
        assert (normalised[:, :, :5] == 0).all()
        assert decoder_of(self.KNOWN, marks_missing=True).read(tile)[:, :, :5].isnan().all()

    def test_pictures_are_of_the_colours_spread_by_the_statistics_of_the_data_set(self):
        nir_first = Preprocessing(
            image_size=2, mean=(9.0, 10.0, 100.0, 1000.0), std=(9.0, 1.0, 10.0, 100.0),
            bands=("nir", "blue", "green", "red"), scale=1.0,
        )  # fmt: skip
        missing, low, high = (
            torch.tensor([9.0, 10.0 + n, 100.0 + 10 * n, 1000.0 + 100 * n]) for n in (0, -2.05, 2.05)
        )
        only_red = missing + torch.tensor([50.0, 0, 0, 102.5])
        images = torch.stack([missing, low, high, only_red])[:, :, None, None]
        picture = nir_first.pictures(images)
        assert picture.dtype == torch.uint8
        assert picture[:, :, 0, 0].tolist() == [[128] * 3, [0] * 3, [255] * 3, [191, 128, 128]]
        assert images[0, 0, 0, 0] == 9  # left as it was
        generator = torch.Generator().manual_seed(0)
        two = Preprocessing(image_size=8, mean=(0.0,) * 2, std=(1.0,) * 2, bands=("vv", "vh"), scale=1.0)
        grey = two.pictures(torch.randn(2, 2, 8, 8, generator=generator))
        assert torch.equal(grey[:, 0], grey[:, 1])
        bytes_ = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
        assert Preprocessing(image_size=8).pictures(bytes_) is bytes_


def test_many_threads_read_the_same_values(tile):
    reader, seen = GeoReader(BandFiles((4, 3), "uint16", 13), (0.0, 0.0)), []
    threads = [threading.Thread(target=lambda: seen.extend(reader.read(tile) for _ in range(20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 160
    assert all(torch.equal(one, seen[0]) for one in seen)
