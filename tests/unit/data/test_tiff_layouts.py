"""Every layout of a TIFF gives the values that were written, or is refused by name with the ways out."""

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from geotiffs import rasterio
from PIL import Image

from sat_vg.backbone_finetuning.data.reading import gdal
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER, decode_or_reason, decode_rgb
from sat_vg.backbone_finetuning.utils.errors import DataError

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
COLOURS = np.stack([COLUMNS * 3 + 20, ROWS * 5, (ROWS + COLUMNS) * 2]).astype(np.uint8)
GREY = COLOURS[:1]
BINARY = np.where(COLUMNS < 20, 0, 255).astype(np.uint8)[None]
NEAR_INFRARED = np.clip(180 - ROWS, 1, 254).astype(np.uint8)[None]
BLOCKS = {"tiled": True, "blockxsize": 16, "blockysize": 16}
LOSSLESS = (None, "lzw", "deflate", "zstd", "lzma", "packbits", "lerc", "lerc_deflate", "lerc_zstd", "webp")


def write(path: Path, values: np.ndarray, **options: object) -> Path:
    count, height, width = values.shape
    given = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", **given, **options) as file:
        file.write(values)
    return path


def decoded(path: Path) -> np.ndarray:
    return decode_rgb(path).numpy()


def on_black(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.where(alpha == 255, colours, 0).repeat(3 // len(colours), 0)


def deep(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint16) * 256 + 7


KINDS = {
    "rgb8": (COLOURS, COLOURS, {"photometric": "RGB"}),
    "rgb16": (deep(COLOURS), COLOURS, {"photometric": "RGB"}),
    "rgb16 big-endian": (deep(COLOURS), COLOURS, {"photometric": "RGB", "ENDIANNESS": "BIG"}),
    "rgb16 BigTIFF": (deep(COLOURS), COLOURS, {"photometric": "RGB", "BIGTIFF": "YES"}),
    "rgb8 and more": (np.concatenate([COLOURS, NEAR_INFRARED]), COLOURS, {"photometric": "RGB", "ALPHA": "NO"}),
    "rgba8": (np.concatenate([COLOURS, BINARY]), on_black(COLOURS, BINARY), {"photometric": "RGB", "ALPHA": "YES"}),
    "premultiplied": (
        np.concatenate([on_black(COLOURS, BINARY), BINARY]), on_black(COLOURS, BINARY),
        {"photometric": "RGB", "ALPHA": "PREMULTIPLIED"},
    ),
    "grey8": (GREY, GREY.repeat(3, 0), {}),
    "grey16": (deep(GREY), GREY.repeat(3, 0), {}),
    "grey8, 0 is white": (255 - GREY, GREY.repeat(3, 0), {"photometric": "MINISWHITE"}),
    "grey16, 0 is white": (65535 - deep(GREY), GREY.repeat(3, 0), {"photometric": "MINISWHITE"}),
    "grey8 and alpha": (np.concatenate([GREY, BINARY]), on_black(GREY, BINARY), {"ALPHA": "YES"}),
    "grey16 and alpha": (
        np.concatenate([deep(GREY), BINARY * np.uint16(257)]), on_black(GREY, BINARY), {"ALPHA": "YES"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_every_order_and_compression_gives_the_values_that_were_written(tmp_path, kind, interleave):
    values, expected, options = KINDS[kind]
    tried = 0
    for compression in LOSSLESS:
        for blocks in ({}, BLOCKS):
            for predictor in (1, 2) if compression in ("lzw", "deflate", "zstd") else (1,):
                extra = {**blocks, **({"compress": compression} if compression else {})}
                extra |= {"predictor": 2} if predictor == 2 else {}
                extra |= {"WEBP_LOSSLESS": "YES"} if compression == "webp" else {}
                path = tmp_path / "a.tif"
                try:
                    with rasterio.open(write(path, values, interleave=interleave, **options, **extra)) as file:
                        file.read()
                except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError):
                    continue  # GDAL does not write this combination
                np.testing.assert_array_equal(decoded(path), expected, err_msg=f"{extra}")
                tried += 1
    assert tried >= 10


@pytest.mark.parametrize("bits", range(1, 16))
@pytest.mark.parametrize("bands", [1, 3])
def test_every_depth(tmp_path, bits, bands):
    full = (1 << bits) - 1
    values = np.broadcast_to(COLUMNS * full // 63, (bands, 48, 64)).astype(np.uint8 if bits <= 8 else np.uint16)
    options = {"photometric": "RGB"} if bands == 3 else {}
    path = write(tmp_path / "a.tif", values, nbits=bits, compress="deflate", **options)
    expected = values >> (bits - 8) if bits > 8 else values.astype(int) * 255 // full
    assert expected.max() == 255
    np.testing.assert_array_equal(decoded(path), expected.repeat(3 // bands, 0))


def test_lossy_colours_come_close(tmp_path):
    smooth = np.stack([COLUMNS * 3, ROWS * 3, 90 + 0 * ROWS]).astype(np.uint8)
    for options in (
        {"photometric": "YCBCR", "compress": "jpeg"},
        {"photometric": "RGB", "compress": "jpeg"},
        {"photometric": "RGB", "compress": "webp"},
        {"photometric": "RGB", "compress": "jpeg", "interleave": "band"},
    ):
        path = write(tmp_path / "a.tif", smooth, **options)
        assert abs(decoded(path).astype(int) - smooth).max() < 20, options


def test_cmyk_becomes_rgb(tmp_path):
    flat = np.full((4, 48, 64), 0, np.uint8)
    flat[1] = 255  # magenta
    for compression in ("lzw", "lerc"):
        path = write(tmp_path / "a.tif", flat, photometric="CMYK", compress=compression)
        assert decoded(path)[:, 5, 5].tolist() == [255, 0, 255], compression


def test_a_palette_of_16_bits_gives_its_colours(tmp_path):
    values = (COLUMNS % 4 * 300).astype(np.uint16)[None]
    path = tmp_path / "a.tif"
    palette = {0: (9, 8, 7), 300: (200, 0, 10), 600: (0, 0, 255), 900: (1, 2, 3)}
    size = {"driver": "GTiff", "count": 1, "height": 48, "width": 64, "dtype": "uint16", "photometric": "PALETTE"}
    with rasterio.open(path, "w", **size) as file:
        file.write(values)
        file.write_colormap(1, palette)
    assert decoded(path)[:, 0, :4].T.tolist() == [list(colour) for colour in palette.values()]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_by_gdal_as_by_pillow(tmp_path, orientation):
    write(tmp_path / "a.tif", COLOURS, photometric="RGB")
    with Image.open(tmp_path / "a.tif") as image:
        pixels = image.copy()
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels.save(tmp_path / "pillow.tif", exif=exif)
    # GDAL writes no orientation, so a tag that can be spared becomes one.
    write(tmp_path / "gdal.tif", COLOURS, photometric="RGB", compress="lerc")
    data = bytearray((tmp_path / "gdal.tif").read_bytes())
    entry = data.index(struct.pack("<HHIH", 284, 3, 1, 1))  # planar configuration, 1 is what goes without saying
    data[entry : entry + 10] = struct.pack("<HHIH", 274, 3, 1, orientation)
    (tmp_path / "gdal.tif").write_bytes(data)
    np.testing.assert_array_equal(decoded(tmp_path / "gdal.tif"), decoded(tmp_path / "pillow.tif"))


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (COLOURS.astype(np.float32), {"photometric": "RGB", "compress": "deflate", "predictor": 3}, "floating-point"),
        (GREY.astype(np.int16), {"compress": "lerc"}, "signed"),
        (GREY.astype(np.int8), {}, "signed"),
        (GREY.astype(np.uint32), {"compress": "zstd"}, "32-bit integer"),
        (GREY.astype(np.complex64), {}, "floating-point"),
        (np.concatenate([COLOURS, COLOURS[:2]]), {"photometric": "RGB"}, "5 bands"),
        (COLOURS, {"photometric": "CIELAB", "compress": "deflate"}, "CIELAB"),
        (COLOURS[:2], {}, "2 bands that are not marked as RGB"),
        (np.concatenate([deep(COLOURS), deep(GREY)]), {}, "4 bands that are not marked as RGB"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_what_has_no_reading_as_rgb_is_refused_by_name(tmp_path, values, options, words, interleave):
    path = write(tmp_path / "a.tif", values, interleave=interleave, **options)
    with pytest.raises(DataError, match=words) as caught:
        decode_rgb(path)
    assert "--bands" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (COLOURS, {"photometric": "RGB", "compress": "lerc"}, "LERC compression"),
        (COLOURS, {"photometric": "RGB", "compress": "webp"}, "WebP compression"),
        (
            deep(COLOURS),
            {"photometric": "RGB", "interleave": "band"},
            "16-bit grey or RGBA bands one after the other",
        ),
        (GREY.astype(np.uint16), {"nbits": 12}, "12-bit grey pixels"),
        (65535 - deep(GREY), {"photometric": "MINISWHITE"}, "0 is white"),
    ],
    ids=str,
)
def test_without_rasterio_a_layout_that_needs_it_is_refused_by_name(tmp_path, monkeypatch, values, options, words):
    path = write(tmp_path / "a.tif", values, **options)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    gdal.require_rasterio.cache_clear()
    with pytest.raises(DataError, match=words) as caught:
        decode_rgb(path)
    for remedy in ("pip install 'sat_vg[geo]'", "--bands", "convert it to 8-bit RGB"):
        assert remedy in str(caught.value)


class TestAlpha:
    @pytest.mark.parametrize("compression", [None, "lzw", "lerc", "jpeg"])
    def test_near_infrared_that_gdal_marked_as_alpha_is_left_out(self, tmp_path, compression):
        values = np.concatenate([COLOURS, NEAR_INFRARED])
        path = write(tmp_path / "a.tif", values, **({"compress": compression} if compression else {}))
        with rasterio.open(path) as file:
            assert file.colorinterp[3].name == "alpha"
            expected = file.read((1, 2, 3))
        np.testing.assert_array_equal(decoded(path), expected)
        assert RGB_DECODER.examine(path).traits.alpha == "ignored"

    def test_of_water_too_where_near_infrared_is_nearly_0(self, tmp_path):
        dark = (ROWS % 3).astype(np.uint8)[None]
        path = write(tmp_path / "a.tif", np.concatenate([COLOURS, dark]))
        np.testing.assert_array_equal(decoded(path), COLOURS)

    def test_grey_with_a_second_quantity_that_is_marked_as_alpha(self, tmp_path):
        path = write(tmp_path / "a.tif", np.concatenate([GREY, NEAR_INFRARED]), ALPHA="YES")
        np.testing.assert_array_equal(decoded(path), GREY.repeat(3, 0))

    @pytest.mark.parametrize("compression", [None, "jpeg"])
    def test_transparency_with_soft_edges_stays_transparency(self, tmp_path, compression):
        alpha = BINARY.copy()
        alpha[:, :, 20] = 128
        options = {"photometric": "RGB", **({"compress": compression} if compression else {})}
        path = write(tmp_path / "a.tif", np.concatenate([COLOURS, alpha]), ALPHA="YES", **options)
        assert decoded(path)[:, :, :14].max() < 6
        assert abs(decoded(path)[:, :, 32:].astype(int) - COLOURS[:, :, 32:]).max() < 30

    @pytest.mark.parametrize("ending", ["png", "webp", "tif"])
    def test_that_an_image_editor_wrote_composites_and_is_said(self, tmp_path, ending):
        path = tmp_path / f"a.{ending}"
        rgba = np.concatenate([COLOURS, NEAR_INFRARED]).transpose(1, 2, 0)
        Image.fromarray(rgba).save(path, **({"lossless": True} if ending == "webp" else {}))
        expected = np.floor(COLOURS.astype(float) * NEAR_INFRARED / 255 + 0.5)
        np.testing.assert_array_equal(decoded(path), expected)
        assert RGB_DECODER.examine(path).traits.alpha == "soft"

    def test_full_alpha_is_nothing_to_speak_of(self, tmp_path):
        opaque = np.concatenate([COLOURS, np.full_like(GREY, 255)])
        path = write(tmp_path / "a.tif", opaque)
        np.testing.assert_array_equal(decoded(path), COLOURS)
        assert RGB_DECODER.examine(path).traits.alpha == ""


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_jpeg_2000_is_read(tmp_path, mode):
    pixels = deep(GREY)[0] if mode == "I;16" else GREY[0] if mode == "L" else COLOURS.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", irreversible=False)
    path = tmp_path / "a.jp2"
    path.write_bytes(stream.getvalue())
    expected = COLOURS if mode == "RGB" else GREY.repeat(3, 0)
    np.testing.assert_array_equal(decode_or_reason(path).numpy(), expected)
