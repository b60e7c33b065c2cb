"""Large scenes are read at a fraction of their size; hollow files and endless headers are refused."""

import struct

import numpy as np
import pytest
from geotiffs import rasterio, write_geotiff
from PIL import Image

from sat_vg.backbone_finetuning.data.reading import geo, limits
from sat_vg.backbone_finetuning.data.reading.decoding import decode_or_reason, decode_rgb
from sat_vg.backbone_finetuning.data.reading.geo import GeoReader
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles

DEEP = np.random.default_rng(0).integers(1, 4000, (3, 21, 40), dtype=np.uint16)
DEEP_FILES = BandFiles((1, 2, 3), "uint16", 3)


def read_sparse(path, **profile):
    usual = {"width": 16_000, "height": 16_000, "count": 1, "tiled": True, "compress": "deflate"}
    settings = {**usual, "driver": "GTiff", "dtype": "uint16", "sparse_ok": True, **profile}
    with rasterio.open(path, "w", **settings):
        pass
    return GeoReader(BandFiles((1,), "uint16", settings["count"])).read_or_reason(str(path))


class TestGeoTIFFs:
    def test_a_large_one_is_read_by_each_so_manieth_row_and_column(self, tmp_path, monkeypatch, capsys):
        path = write_geotiff(tmp_path / "scene.tif", DEEP, nodata=int(DEEP[0, 10, 22]))
        whole = GeoReader(DEEP_FILES).read(str(path)).numpy()
        monkeypatch.setattr(geo, "_MOST_VALUES", DEEP.size // 3)
        limits.tell_reduced.cache_clear()
        image = GeoReader(DEEP_FILES).read(str(path)).numpy()
        assert image.shape == (3, 11, 20)
        assert set(image[~np.isnan(image)].tolist()) <= set(whole[~np.isnan(whole)].tolist())  # no value is a mixture
        GeoReader(DEEP_FILES).read(str(path))
        assert capsys.readouterr().err == "note: images of 40 x 21 pixels are read at 1/2 of their width and height\n"

    def test_a_scene_of_a_hundred_million_pixels_is_an_image(self, tmp_path):
        path, row = tmp_path / "scene.tif", np.arange(1, 10_001, dtype=np.uint16)
        settings = {"driver": "GTiff", "width": 10_000, "height": 10_000, "count": 1, "dtype": "uint16"}
        with rasterio.open(path, "w", **settings, compress="lzw", predictor=2) as file:
            for begin in range(0, 10_000, 1000):
                file.write(np.tile(row, (1000, 1)), 1, window=((begin, begin + 1000), (0, 10_000)))
        image = GeoReader(BandFiles((1,), "uint16", 1)).read(str(path)).numpy()
        assert image.shape == (1, 5000, 5000)
        assert np.array_equal(np.diff(image[0, 77]), np.full(4999, 2, np.float32))

    @pytest.mark.parametrize(
        "profile",
        [{}, {"tiled": False}, {"compress": "none"}, {"count": 4}, {"count": 4, "interleave": "band"}],
        ids=str,
    )
    def test_a_sparse_one_is_refused(self, tmp_path, profile):
        reason = read_sparse(tmp_path / "sparse.tif", **profile)
        assert "16000 x 16000 pixels" in reason
        assert "in a file of" in reason

    def test_a_small_sparse_one_has_no_value(self, tmp_path):
        assert "all its pixels are nodata" in read_sparse(tmp_path / "sparse.tif", width=500, height=500, nodata=0)

    def test_one_huge_block_is_refused_with_the_remedy(self, tmp_path, monkeypatch):
        path = write_geotiff(tmp_path / "scene.tif", DEEP, blockysize=21)
        monkeypatch.setattr(geo, "_MOST_BLOCK_BYTES", DEEP.nbytes - 1)
        why = GeoReader(DEEP_FILES).read_or_reason(str(path))
        assert "40 x 21 pixels in 3 bands in blocks of" in why
        monkeypatch.setattr(geo, "_MOST_BLOCK_BYTES", DEEP.nbytes)
        assert GeoReader(DEEP_FILES).read(str(path)).shape == DEEP.shape


class TestRGB:
    @pytest.mark.parametrize(
        ("kind", "mode"),
        [
            *(("png", mode) for mode in ("RGB", "L", "P", "RGBA", "1", "I;16")),
            *(("tiff", mode) for mode in ("RGB", "P", "I;16")),
            ("bmp", "RGB"),
            ("jpeg", "RGB"),
            ("jpeg", "L"),
            ("jpeg", "CMYK"),
        ],
    )
    def test_above_pillows_limit_it_is_read_at_half_its_size(self, tmp_path, kind, mode, monkeypatch):
        path = tmp_path / f"scene.{kind}"
        grey = np.repeat(np.arange(0, 250, 5, dtype=np.uint8)[None], 31, 0)
        is_deep = mode == "I;16"
        image = Image.fromarray(grey.astype(np.uint16) << 8) if is_deep else Image.fromarray(grey).convert(mode)
        image.save(path, kind, quality=95)
        whole = decode_rgb(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31 * 50 - 1)
        half = decode_rgb(path)
        assert half.shape == (3, 16, 25)
        if kind == "jpeg":  # scaled by its own transform
            assert (half[:, :, 2:-2].float() - whole[:, ::2, 4:-4:2].float()).abs().mean() < 4
        else:
            assert {tuple(p) for p in half.flatten(1).T.tolist()} <= {tuple(p) for p in whole.flatten(1).T.tolist()}

    def test_it_stands_upright(self, tmp_path, monkeypatch):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (50, 31)).save(tmp_path / "turned.png", exif=exif)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31 * 50 - 1)
        assert decode_rgb(tmp_path / "turned.png").shape == (3, 25, 16)

    def test_a_hollow_one_is_refused(self, tmp_path):
        Image.new("RGB", (5000, 5000)).save(tmp_path / "hollow.webp", lossless=True)
        assert "5000 x 5000 pixels, 71 MiB, in a file of" in str(decode_or_reason(tmp_path / "hollow.webp"))


def tiff_of_pages(count, big=False):
    """Pages of 8 x 8 pixels that share their pixels."""
    entries = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 16), (277, 1), (278, 8), (279, 64)]
    packed = b"II*\0" + struct.pack("<I", 80) if not big else b"II+\0" + struct.pack("<HHQ", 8, 0, 80)
    data = bytearray(packed.ljust(16, b"\0") + bytes([7]) * 64)
    for page in range(count):
        form, number, offset = ("<HHQQ", "<Q", "<Q") if big else ("<HHII", "<H", "<I")
        packed = [struct.pack(form, tag, 4, 1, value) for tag, value in entries]
        body = struct.pack(number, len(entries)) + b"".join(packed)
        after = len(data) + len(body) + struct.calcsize(offset)
        data += body + struct.pack(offset, after if page < count - 1 else 0)
    return bytes(data)


def why_not_both(path):
    """What the readers of RGB and of bands say of it."""
    return str(decode_or_reason(path)), str(GeoReader(BandFiles((1,), "uint8", 1)).read_or_reason(str(path)))


class TestTIFFHeaders:
    @pytest.mark.parametrize("big", [False, True])
    def test_a_few_pages_are_the_first_and_very_many_are_refused(self, tmp_path, big):
        path = tmp_path / "pages.tif"
        path.write_bytes(tiff_of_pages(3, big))
        assert decode_rgb(path).unique().tolist() == [7]
        path.write_bytes(tiff_of_pages(5000, big))
        for reason in why_not_both(path):
            assert reason == "it has more than 4096 pages"

    @pytest.mark.parametrize("tag", [258, 339, 273, 33432, 65000])
    def test_a_tag_longer_than_any_image_needs_is_refused(self, tmp_path, tag):
        entries = [(256, 3, 1, 8), (257, 3, 1, 8), (277, 3, 1, 1), (262, 3, 1, 1), (tag, 3, 2**28, 200)]
        body = struct.pack("<H", 5) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + bytes(4)
        path = tmp_path / "tag.tif"
        with path.open("wb") as file:
            file.write(b"II*\0" + struct.pack("<I", 8) + body)
            file.truncate(2**29 + 1000)  # of which a file system keeps nothing
        for reason in why_not_both(path):
            assert f"its header has a tag (number {tag})" in reason

    def test_what_is_cut_or_loops_is_left_to_the_reader(self, tmp_path):
        whole = tiff_of_pages(2)
        for number, data in enumerate([*(whole[:end] for end in range(0, len(whole), 9)), whole[:-4] + whole[4:8]]):
            path = tmp_path / f"{number}.tif"
            path.write_bytes(data)
            with path.open("rb") as file:
                limits.require_bounded_tiff(file)
                assert file.tell() == 0
