"""Pixel values of every kind of image file, and a reason for each that is refused."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from raw_images import write_png, write_tiff

from sat_vg.backbone_finetuning.data.reading.decoding import decode_or_reason, decode_rgb
from sat_vg.backbone_finetuning.utils.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = np.random.default_rng(1).integers(0, 65536, (6, 9, 4), dtype=np.uint16)


def pixels(path):
    """What decode_rgb gives, as ``[H, W, 3]``."""
    image = decode_rgb(path)
    assert image.dtype == torch.uint8
    assert image.ndim == 3
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def repeated(grey):
    return np.repeat(np.asarray(grey, dtype=np.uint8)[..., None], 3, axis=2)


def on_black(rgb, alpha):
    return np.floor(rgb.astype(float) * alpha[..., None] / 255 + 0.5).astype(np.uint8)


class TestPlainFormats:
    @pytest.mark.parametrize(
        ("ending", "options"),
        [
            ("png", {}),
            ("bmp", {}),
            ("tif", {}),
            ("tif", {"compression": "tiff_lzw"}),
            ("tif", {"compression": "tiff_deflate"}),
            ("webp", {"lossless": True}),
        ],
    )
    def test_lossless_rgb_is_exact(self, tmp_path, ending, options):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(RGB).save(path, **options)
        np.testing.assert_array_equal(pixels(path), RGB)

    @pytest.mark.parametrize("ending", ["png", "bmp", "tif", "gif"])
    def test_grey_is_repeated(self, tmp_path, ending):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(GREY).save(path)
        np.testing.assert_array_equal(pixels(path), repeated(GREY))

    @pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
    def test_one_bit_is_black_and_white(self, tmp_path, ending):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(GREY > 127).save(path)
        np.testing.assert_array_equal(pixels(path), repeated(np.where(GREY > 127, 255, 0)))

    def test_format_is_told_by_content(self, tmp_path):
        path = tmp_path / "really_png.jpg"
        Image.fromarray(RGB).save(path, format="PNG")
        np.testing.assert_array_equal(pixels(path), RGB)

    def test_first_frame_of_several(self, tmp_path):
        path = tmp_path / "a.tif"
        Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)])
        np.testing.assert_array_equal(pixels(path), RGB)

    def test_path_that_is_not_utf8(self, tmp_path):
        path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
        Image.fromarray(RGB).save(path)
        assert decode_rgb(path).shape == (3, 6, 9)


class TestJpeg:
    @pytest.mark.parametrize("progressive", [False, True])
    def test_same_pixels_as_pillow(self, tmp_path, progressive):
        path = tmp_path / "a.jpg"
        smooth = np.indices((40, 60)).sum(0).astype(np.uint8)
        Image.fromarray(np.stack([smooth, 255 - smooth, smooth // 2], -1)).save(path, progressive=progressive)
        with Image.open(path) as image:
            np.testing.assert_array_equal(pixels(path), np.array(image))
        assert abs(pixels(path)[20, 30].astype(int) - (50, 205, 25)).max() < 12

    def test_grey(self, tmp_path):
        path = tmp_path / "a.jpg"
        Image.fromarray(GREY).save(path)
        with Image.open(path) as image:
            np.testing.assert_array_equal(pixels(path), repeated(np.array(image)))

    def test_cmyk_is_pillows_rgb(self, tmp_path):
        path = tmp_path / "a.jpg"
        flat = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
        Image.fromarray(flat).convert("CMYK").save(path, quality=98)
        assert abs(pixels(path).astype(int) - flat).max() < 6  # not inverted
        with Image.open(path) as image:
            np.testing.assert_array_equal(pixels(path), np.array(image.convert("RGB")))

    def test_bytes_after_the_end_do_no_harm(self, tmp_path):
        whole, longer = tmp_path / "a.jpg", tmp_path / "b.jpg"
        Image.fromarray(RGB).save(whole)
        longer.write_bytes(whole.read_bytes() + b"\0" * 100)
        np.testing.assert_array_equal(pixels(longer), pixels(whole))


class TestDeepPixels:
    def test_grey_png(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(DEEP[..., 0]).save(path)
        np.testing.assert_array_equal(pixels(path), repeated(DEEP[..., 0] >> 8))

    def test_grey_png_with_transparent_value(self, tmp_path):
        path = tmp_path / "a.png"
        grey = DEEP[..., 0].copy()
        grey[0, :2] = 40_000, 40_001
        write_png(path, grey, 0, transparent=struct.pack(">H", 40_000))
        expected = repeated(grey >> 8)
        expected[grey == 40_000] = 0
        np.testing.assert_array_equal(pixels(path), expected)
        assert pixels(path)[0, 1, 0] == 40_001 >> 8

    def test_rgb_png(self, tmp_path):
        path = tmp_path / "a.png"
        write_png(path, DEEP[..., :3], 2)
        np.testing.assert_array_equal(pixels(path), DEEP[..., :3] >> 8)

    def test_rgba_png(self, tmp_path):
        path = tmp_path / "a.png"
        write_png(path, DEEP, 6)
        high = DEEP >> 8
        np.testing.assert_array_equal(pixels(path), on_black(high[..., :3], high[..., 3]))

    def test_rgb_png_with_transparent_colour_is_refused(self, tmp_path):
        path = tmp_path / "a.png"
        write_png(path, DEEP[..., :3], 2, transparent=struct.pack(">HHH", *DEEP[0, 0, :3]))
        with pytest.raises(DataError, match="16-bit RGB PNG with a transparent colour; convert"):
            decode_rgb(path)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("bands", [1, 3, 4])
    def test_tiff(self, tmp_path, order, bands):
        path = tmp_path / "a.tif"
        array = DEEP[..., :bands]
        write_tiff(path, array, 1 if bands == 1 else 2, order=order, extra=(0,) if bands == 4 else ())
        high = (array >> 8).astype(np.uint8)
        np.testing.assert_array_equal(pixels(path), repeated(high[..., 0]) if bands == 1 else high[..., :3])


class TestAlphaAndPalette:
    @pytest.mark.parametrize("ending", ["png", "tif", "webp"])
    def test_rgba_is_composited_on_black(self, tmp_path, ending):
        path = tmp_path / f"a.{ending}"
        alpha = np.linspace(0, 255, GREY.size).astype(np.uint8).reshape(GREY.shape)
        options = {"lossless": True, "exact": True} if ending == "webp" else {}
        Image.fromarray(np.dstack([RGB, alpha])).save(path, **options)
        np.testing.assert_array_equal(pixels(path), on_black(RGB, alpha))
        assert pixels(path)[0, 0].tolist() == [0, 0, 0]
        assert pixels(path)[-1, -1].tolist() == RGB[-1, -1].tolist()

    def test_grey_with_alpha(self, tmp_path):
        path = tmp_path / "a.png"
        alpha = RGB[..., 1]
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]).save(path)
        np.testing.assert_array_equal(pixels(path), on_black(repeated(GREY), alpha))

    @pytest.mark.parametrize("ending", ["png", "bmp", "tif", "gif"])
    def test_palette_gives_its_colours(self, tmp_path, ending):
        path = tmp_path / f"a.{ending}"
        image = Image.fromarray((GREY % 4).astype(np.uint8), mode=None)
        image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0, 7, 8, 9])
        image.save(path)
        colours = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 0], [7, 8, 9]], dtype=np.uint8)
        np.testing.assert_array_equal(pixels(path), colours[GREY % 4])

    @pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
    def test_palette_with_transparency(self, tmp_path, transparency):
        path = tmp_path / "a.png"
        image = Image.fromarray((GREY % 4).astype(np.uint8))
        image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0, 7, 8, 9])
        image.save(path, transparency=transparency)
        middle = [0, 255, 0] if transparency == 1 else [0, 128, 0]
        colours = np.array([[10, 20, 30], [0, 0, 0], middle, [7, 8, 9]], dtype=np.uint8)
        np.testing.assert_array_equal(pixels(path), colours[GREY % 4])

    @pytest.mark.parametrize("depth", [1, 2, 4, 8])
    def test_transparent_value_of_grey_png(self, tmp_path, depth):
        """Pillow spreads the values of 2 and 4 bits over 0 to 255, and leaves the transparent one as it is."""
        path, most = tmp_path / "a.png", 2**depth - 1
        write_png(path, GREY.astype(int) % (most + 1), 0, depth=depth, transparent=struct.pack(">H", most))
        expected = GREY.astype(int) % (most + 1) * 255 // most
        np.testing.assert_array_equal(pixels(path), repeated(np.where(expected == 255, 0, expected)))

    def test_transparent_colour_of_rgb_png(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(RGB).save(path, transparency=tuple(int(v) for v in RGB[2, 3]))
        expected = RGB.copy()
        expected[(RGB[2, 3] == RGB).all(-1)] = 0
        np.testing.assert_array_equal(pixels(path), expected)


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
    def test_applied_once(self, tmp_path, ending, orientation):
        path, plain = tmp_path / f"a.{ending}", tmp_path / f"plain.{ending}"
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(ending, {})
        Image.fromarray(RGB).save(path, exif=exif, **options)
        Image.fromarray(RGB).save(plain, **options)
        # Where the top left pixel of the stored image belongs, for each orientation.
        turned = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1),
            7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
            8: lambda a: np.rot90(a, 1),
        }[orientation]
        np.testing.assert_array_equal(pixels(path), turned(pixels(plain)))

    def test_cmyk_jpeg(self, tmp_path):
        path = tmp_path / "a.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(RGB).convert("CMYK").save(path, exif=exif)
        with Image.open(path) as image:
            expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        assert expected.shape == (9, 6, 3)
        np.testing.assert_array_equal(pixels(path), expected)

    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    def test_damaged_exif_does_not_cost_the_image(self, tmp_path, mode):
        path, plain = tmp_path / "a.jpg", tmp_path / "b.jpg"
        Image.fromarray(RGB).convert(mode).save(plain)
        Image.fromarray(RGB).convert(mode).save(path, exif=b"Exif\0\0XX garbage")
        np.testing.assert_array_equal(pixels(path), pixels(plain))

    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    def test_damage_beside_the_orientation(self, tmp_path, mode):
        """Pillow turns the image, then raises struct.error over a text where a number belongs."""
        path, plain = tmp_path / "a.jpg", tmp_path / "b.jpg"
        tags = struct.pack(">HHII", 0x014A, 2, 16, 38) + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
        exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + tags + bytes(4) + b"maker name long\0"
        Image.fromarray(RGB).convert(mode).save(plain)
        Image.fromarray(RGB).convert(mode).save(path, exif=exif)
        np.testing.assert_array_equal(pixels(path), np.rot90(pixels(plain), -1))


class TestRefusals:
    @pytest.mark.parametrize(
        ("array", "options", "words"),
        [
            (DEEP[..., :1].astype("f4"), {"sample_format": 3}, "floating-point"),
            (DEEP[..., :1].astype("u4"), {}, "32-bit integer"),
            (DEEP[..., :1].astype("u4"), {"order": ">"}, "32-bit integer"),
            (DEEP[..., :1].astype("i4"), {"sample_format": 2}, "signed"),
            (DEEP[..., :1].view("i2"), {"sample_format": 2}, "signed"),
            (RGB[..., :1].view("i1"), {"sample_format": 2}, "signed"),  # Pillow would drop the sign
            (np.dstack([RGB, RGB[..., :2]]), {"extra": (0, 0)}, "5 bands"),  # Pillow would drop two
            (np.dstack([DEEP] * 3), {"extra": (0,) * 11}, "12 bands"),
            (RGB[..., :2], {"extra": (0,)}, "2 bands that are not marked as RGB"),  # Pillow would drop one
            (DEEP, {"extra": (0, 0, 0)}, "4 bands that are not marked as RGB"),
        ],
    )
    def test_tiff_without_plain_reading(self, tmp_path, array, options, words, capfd):
        path = tmp_path / "a.tif"
        photometric = 2 if words == "5 bands" else 1
        write_tiff(path, array, photometric, **options)
        with pytest.raises(DataError, match=words) as caught:
            decode_rgb(path)
        assert repr(str(path)) in str(caught.value)
        assert "convert it to 8-bit RGB" in str(caught.value)
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", r"empty \(0 bytes\)"),
            (b"hello, I am a text file", "no JPEG, PNG"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no JPEG, PNG"),
            (b"\xff\xd8\xff", "cut short"),
            (b"\xff\xd8\xff\xe0" + bytes(300), "cut short"),
            (b"II*\0\xff\xff\xff\xff", "cut short"),
        ],
    )
    def test_no_image(self, tmp_path, content, words):
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            decode_rgb(path)
        assert repr(str(path)) in str(caught.value)
        assert "remove it" in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__

    def test_missing_folder_and_odd_paths(self, tmp_path):
        with pytest.raises(DataError, match=r"no such file; check the path"):
            decode_rgb(tmp_path / "none.jpg")
        with pytest.raises(DataError, match=r"cannot be opened \(Is a directory\)"):
            decode_rgb(str(tmp_path))
        with pytest.raises(DataError, match="null"):
            decode_rgb(tmp_path / "a\0.jpg")

    @pytest.mark.parametrize("name", ["rgb.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "a.png", "a.tif"])
    @pytest.mark.parametrize("truncated_allowed", [False, True])
    def test_cut_short(self, tmp_path, name, truncated_allowed, monkeypatch):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_allowed)
        if truncated_allowed and not name.endswith(".jpg"):
            pytest.skip("for other formats this switch is the user's word")
        path = tmp_path / name
        noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        image = Image.fromarray(noise).convert({"grey.jpg": "L", "cmyk.jpg": "CMYK"}.get(name, "RGB"))
        image.save(path, **({"progressive": True} if name == "progressive.jpg" else {}))
        whole = path.read_bytes()
        assert isinstance(decode_or_reason(path), torch.Tensor)
        # The last bytes of a PNG are checksums and its end mark, without which all pixels are there.
        for length in (len(whole) - (30 if name == "a.png" else 1), len(whole) * 9 // 10, len(whole) // 2, 200):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match="cut short"):
                decode_rgb(path)
        if name.endswith(".jpg"):  # a download that was cut but had its space reserved
            path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
            with pytest.raises(DataError, match="cut short"):
                decode_rgb(path)

    @pytest.mark.parametrize("ending", ["jpg", "png"])
    def test_bomb(self, tmp_path, ending, monkeypatch):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(RGB).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.size // 3)
        assert isinstance(decode_or_reason(path), torch.Tensor)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.size // 6 - 1)  # at twice as many Pillow itself refuses
        with pytest.raises(DataError, match=r"too large.*smaller tiles"):
            decode_rgb(path)

    def test_jpeg_header_that_claims_gigapixels(self, tmp_path):
        path = tmp_path / "a.jpg"
        Image.fromarray(RGB).save(path)
        data = path.read_bytes()
        at = data.index(b"\xff\xc0") + 5
        path.write_bytes(data[:at] + struct.pack(">HH", 65000, 65000) + data[at + 4 :])
        with pytest.raises(DataError, match="65000 x 65000 pixels"):
            decode_rgb(path)


def test_reason_has_no_path(tmp_path):
    path = Path(tmp_path / "a.jpg")
    path.write_bytes(b"")
    assert decode_or_reason(path) == "the file is empty (0 bytes)"


def test_no_warnings(tmp_path):
    jpeg, palette, tiff = tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "a.tif"
    Image.fromarray(RGB).save(jpeg)
    image = Image.fromarray((GREY % 4).astype(np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0, 7, 8, 9])
    image.save(palette, transparency=bytes([255, 0, 128]))
    Image.fromarray(RGB).save(tiff, tiffinfo={305: "a description that is long enough to lie elsewhere"})
    damaged = bytearray(tiff.read_bytes())
    entry = damaged.index(struct.pack("<HH", 305, 2))
    damaged[entry + 8 : entry + 12] = struct.pack("<I", len(damaged) - 2)  # beyond the end of the file
    tiff.write_bytes(damaged)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(tiff) as image:
            image.load()
        assert seen  # Pillow does warn
        seen.clear()
        warnings.simplefilter("always")
        for path in (jpeg, palette, tiff):
            decode_rgb(path)
        assert [str(warning.message) for warning in seen] == []
