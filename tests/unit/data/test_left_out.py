"""Files that are not read for their ending are counted and said, whoever lists the images."""

from pathlib import Path

import pytest
from PIL import Image
from test_image_lists import images_of, list_images

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.utils.errors import DataError

OTHERS = ("a.gif", "b.GIF", "c.ppm", "d.avif", "e")
BESIDE = ("labels.csv", "a.tfw", "a.tif.aux.xml", "Thumbs.db", ".hidden.gif", "README.md")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("sea", "town"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "data" / name / f"{number}.png")
    for name in (*OTHERS, *BESIDE):
        (tmp_path / "data" / "sea" / name).write_bytes(b"x")
    return tmp_path / "data"


EXPECTED = "left out, as their endings are not read: 2 .gif, 1 without an ending, 1 .avif, 1 .ppm"


@pytest.mark.parametrize("splits", [("",), ("train",), ("train", "val"), ("train", "val", "test")])
def test_by_class_folders(root, tmp_path, splits):
    base = tmp_path / "whole"
    for split in splits:
        (base / split).parent.mkdir(parents=True, exist_ok=True)
        if split:
            base.mkdir(exist_ok=True)
            (base / split).symlink_to(root)
    description = load_class_folders(root if splits == ("",) else base).description
    assert EXPECTED.replace("2", str(2 * len(splits)), 1).partition(", 1")[0] in description
    assert ".csv" not in description
    assert ".xml" not in description


def test_by_lists_for_predict_and_extract(root):
    assert EXPECTED in list_images(str(root)).description
    assert EXPECTED in list_images(str(root / "sea" / "*")).description
    for name in OTHERS:
        (root / "sea" / name).unlink()
    assert "left out" not in list_images(str(root)).description


def test_where_nothing_else_is_left(tmp_path):
    for name in ("sea", "town"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.ppm").write_bytes(b"x")
    with pytest.raises(DataError, match=r"left out, as their endings are not read: 2 \.ppm"):
        load_class_folders(tmp_path / "data")
    with pytest.raises(DataError, match=r"left out, as their endings are not read: 2 \.ppm"):
        images_of(str(tmp_path / "data"))
    Image.new("RGB", (4, 4)).save(tmp_path / "data/sea/2.png")
    with pytest.raises(DataError, match=r"class folder without images: 'town'.*2 \.ppm"):
        load_class_folders(tmp_path / "data")


@pytest.mark.parametrize("ending", ["jp2", "jfif", "JP2"])
def test_jpeg_2000_and_jfif_are_listed_and_read(root, ending):
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    path = root / "sea" / f"new.{ending}"
    image.save(path, format="JPEG" if ending == "jfif" else "JPEG2000")
    assert str(path) in images_of(str(root))
    assert decode_rgb(path).float().mean(dim=(1, 2)).round().tolist() == pytest.approx([200, 100, 50], abs=2)
