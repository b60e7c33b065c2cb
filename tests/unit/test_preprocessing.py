import pickle

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, UserError
from sat_vg.backbone_finetuning.utils.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BandFiles,
    Levels,
    Preprocessing,
)


def test_round_trip_as_plain_data():
    preprocessing = Preprocessing(image_size=96, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), interpolation="bicubic")
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    assert all(isinstance(value, (int, str, list)) for value in preprocessing.to_dict().values())


def test_normalisation_is_torchvisions():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = (images / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.inference_mode():  # constants made here must serve training, too
        Preprocessing(image_size=8).normalise(images)
    found = Preprocessing(image_size=8).normalise(images)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not found.is_inference()


def test_geometry_keeps_the_whole_of_a_square_and_the_centre_of_the_rest():
    geometry = Preprocessing(image_size=32).geometry()
    square = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(geometry(square), square)
    wide = torch.zeros(3, 32, 96, dtype=torch.uint8)
    wide[:, :, 32:64] = 200
    assert (geometry(wide) == 200).all()
    for height, width in ((20, 31), (247, 253), (1, 1)):
        assert geometry(torch.zeros(3, height, width, dtype=torch.uint8)).shape == (3, 32, 32)


def test_transforms_take_pil_images_and_tensors_and_can_be_pickled():
    preprocessing = Preprocessing(image_size=24)
    array = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    transforms = pickle.loads(pickle.dumps(preprocessing.transforms()))
    from_tensor = transforms(tensor)
    assert from_tensor.shape == (3, 24, 24)
    assert torch.equal(transforms(Image.fromarray(array)), from_tensor)
    assert torch.equal(from_tensor, preprocessing.normalise(preprocessing.geometry()(tensor)[None])[0])
    assert transforms(Image.fromarray(array[..., 0])).shape == (3, 24, 24)


def bars() -> np.ndarray:
    """Smooth, of three colours, without symmetry."""
    rows, columns = np.mgrid[0:40, 0:56]
    return np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


def with_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(bars()).convert(mode)
    image.putalpha(Image.fromarray((bars()[..., 1] > 99).astype(np.uint8) * 255))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_a_pil_image_is_turned_as_its_file_is_in_the_training(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(bars()).save(tmp_path / f"a.{ending}", exif=exif)
    assert_as_in_the_training(tmp_path / f"a.{ending}")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("rgba.png", with_alpha("RGB")),
        ("grey_and_alpha.png", with_alpha("L")),
        ("rgba.webp", with_alpha("RGB")),
        ("rgba.tif", with_alpha("RGB")),
        ("grey.png", Image.fromarray(bars()[..., 0])),
        ("palette.png", Image.fromarray(bars()).quantize(20)),
        ("palette_with_transparency.png", with_alpha("RGB").quantize(20)),
        ("one_bit.png", Image.fromarray(bars()[..., 0] > 90)),
        ("cmyk.jpg", Image.fromarray(bars()).convert("CMYK")),
    ],
)
def test_a_pil_image_has_the_colours_of_its_file_in_the_training(tmp_path, name, image):
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert_as_in_the_training(tmp_path / name)


def test_alpha_by_its_mark_alone_is_ignored_as_in_the_training(tmp_path):
    near_infrared = np.concatenate([bars(), bars()[..., :1]], axis=-1)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = (1, 1, 1, 1)  # what software for geodata writes and image editors leave out
    Image.fromarray(near_infrared).save(tmp_path / "a.tif", tiffinfo=tags)
    assert_as_in_the_training(tmp_path / "a.tif")
    assert torch.equal(decode_rgb(tmp_path / "a.tif"), torch.from_numpy(bars()).permute(2, 0, 1))


def test_a_pil_image_is_refused_where_the_training_reads_other_values(tmp_path):
    image = Image.fromarray(bars())
    deep = Preprocessing(image_size=32, scale=1.0, files=BandFiles((1, 2, 3), "uint16", 3))
    with pytest.raises(UserError, match=r"uint16 values of GeoTIFFs; give a tensor"):
        deep.transforms()(image)
    spread = Preprocessing(image_size=32, levels=Levels((0.0, 0.0, 0.0), (3000.0, 3000.0, 3000.0)))
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(UserError, match=r"levels\.spread"):
        spread.transforms()(opened)
    assert spread.transforms()(image).shape == (3, 32, 32)


def assert_as_in_the_training(path) -> None:
    transforms = Preprocessing(image_size=32).transforms()
    with Image.open(path) as image:
        assert torch.equal(transforms(image), transforms(decode_rgb(path)))
        assert torch.equal(transforms(image), transforms(decode_rgb(path))), "the image was changed"


def test_the_middle_of_a_very_long_image():
    geometry = Preprocessing(image_size=16).geometry()
    image = torch.randint(256, (3, 10, 400), dtype=torch.uint8)
    middle = geometry(image[..., 160:240])
    assert torch.equal(geometry(image), middle)
    assert torch.equal(geometry(image.transpose(1, 2)), geometry(image[..., 160:240].transpose(1, 2)))
    assert geometry(torch.zeros(3, 1, 30_000, dtype=torch.uint8)).shape == (3, 16, 16)
    assert geometry(torch.zeros(3, 30_000, 1, dtype=torch.uint8)).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 10**9},
        {"image_size": "32"},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [float("nan"), 1.0, 1.0]},
        {"mean": [0.5]},
        {"mean": 0.5},
        {"interpolation": "cubic"},
        {"bands": [1, 2, 3]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_unsound_values_are_refused(wrong):
    with pytest.raises(CheckpointError, match="not sound"):
        Preprocessing.from_dict({**Preprocessing(image_size=32).to_dict(), **wrong})
