"""Shards that are made of tar files of others, of tables, and of shards."""

import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, write_image
from tar_shards import splits_of

from sat_vg.backbone_finetuning.data.reading.bands import find_bands
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER, decode_rgb
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of_files
from sat_vg.backbone_finetuning.utils.errors import DataError

pytest.importorskip("webdataset", reason="shards are written with webdataset, which is not installed")


def tar_of(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))


@pytest.fixture
def foreign(tmp_path):
    """Two tar files as others write them: folders in names, long names, other files, labels of numbers."""
    image = tmp_path / "one.png"
    for number in range(2):
        files = {}
        for count in range(10):
            write_image(image, COLOURS["sea"], 10 * number + count, size=8)
            key = f"./{'long' * 40}/{number}_{count}"
            files[f"{key}.seg.png" if count == 0 else f"{key}.png"] = image.read_bytes()
            files[f"{key}.cls"] = b"%d\n" % (count % 2)
            files[f"{key}.json"] = b'{"place": 3}'
        tar_of(tmp_path / f"foreign/data-{number}.tar", files)
    return tmp_path / "foreign"


def test_tar_files_of_others_get_an_index(foreign, shard_command):
    with pytest.raises(DataError, match="sat-vg shard --index"):
        splits_of(foreign)
    code, _, err = shard_command("--index", foreign)
    assert code == 0, err
    splits = splits_of(foreign)
    assert splits.class_names == ("0", "1")
    assert splits.val_is_drawn
    assert (len(splits.train), len(splits.val)) == (16, 4)
    assert splits.val.class_counts() == [2, 2]
    assert splits_of(foreign, shard_window=1).val.paths != ()
    assert Counter(map(str, splits_of(foreign, shard_window=1).val.paths)) == Counter(map(str, splits.val.paths))
    for path in splits.train.paths:
        assert decode_rgb(path).shape == (3, 8, 8)
        assert "/long" in path
    code, _, err = shard_command("--index", foreign)
    assert code == 2
    assert "shards.json already" in err


def test_class_names_of_tar_files_of_others(foreign, shard_command):
    (foreign / "classes.txt").write_text("lake\nriver\npond\n")
    assert shard_command("--index", foreign)[0] == 0
    assert splits_of(foreign).class_names == ("lake", "river", "pond")


def test_an_index_that_cannot_be_used_is_not_left_behind(foreign, shard_command):
    (foreign / "classes.txt").write_text("caf\u00e9\ncafe\u0301\n", encoding="utf-8")
    code, _, err = shard_command("--index", foreign)
    assert code == 2
    assert "one of them is there twice" in err
    assert not (foreign / "shards.json").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b"", "b.cls": b"0"}, "has no label for 'a.png'"),
        ({"a.png": b"x", "a.cls": b"0", "b.cls": b"0"}, "a label and no image under 'b'"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"0"}, "two images under 'a'"),
        ({"../a.png": b"x", "../a.cls": b"0"}, "'../a.png', which is no name to read"),
        ({"a.png": b"x", "a.cls": b"99999999"}, "can be no number of a class"),
        ({"a.png": b"x", "a.cls": b"0"}, "only the class"),
        ({"a.png": b"x", "a.json": b"[0, 1]"}, "the classes [0, 1]"),
        ({"a.txt": b"x"}, "holds no images"),
    ],
)
def test_tar_files_that_make_no_data_set(tmp_path, shard_command, files, message):
    tar_of(tmp_path / "odd/x.tar", files)
    code, _, err = shard_command("--index", tmp_path / "odd")
    assert code == 2
    assert message in err, err
    assert not (tmp_path / "odd/shards.json").exists()


def test_no_tar_file_and_a_damaged_one(tmp_path, shard_command):
    assert "holds no .tar files" in shard_command("--index", tmp_path)[2]
    (tmp_path / "x.tar").write_bytes(b"no tar" * 500)
    code, _, err = shard_command("--index", tmp_path)
    assert code == 2
    assert "x.tar' is no tar file" in err


def test_several_classes_an_image(tmp_path, shard_command):
    rows = ["path,labels"]
    for number in range(24):
        write_image(tmp_path / f"images/{number}.png", COLOURS["sea"], number, size=8)
        rows.append(f"images/{number}.png,{('', 'a', 'b', 'a|b')[number % 4]}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    code, _, err = shard_command(tmp_path / "images.csv", "--out", tmp_path / "shards", "--images_per_shard", 5)
    assert code == 0, err
    ours, theirs = splits_of(tmp_path / "shards"), splits_of(tmp_path / "images.csv")
    assert ours.train.label_sets == theirs.train.label_sets
    for one, other in zip(ours.parts, theirs.parts, strict=True):
        assert one.labels == other.labels
        assert [path.open().read() for path in one.paths] == [Path(path).read_bytes() for path in other.paths]


def test_shards_out_of_windows_of_scenes(tmp_path, shard_command):
    from geotiffs import write_geotiff

    write_geotiff(tmp_path / "deep.tif", np.arange(4 * 32 * 64, dtype=np.uint16).reshape(4, 32, 64))
    write_image(tmp_path / "picture.png", COLOURS["sea"], 0, size=64)
    for scene, flags in (("deep.tif", ("--bands", "1,4")), ("picture.png", ())):
        rows = [f"{scene},{16 * x} {16 * y} 16 16,{'ab'[x % 2]}" for x in range(4) for y in range(2)]
        (tmp_path / "windows.csv").write_text("\n".join(["scene,window,label", *rows]))
        shards = tmp_path / f"shards of {scene}"
        code, _, err = shard_command(tmp_path / "windows.csv", "--out", shards, *flags)
        assert code == 0, err
        ours, theirs = splits_of(shards), splits_of(tmp_path / "windows.csv")
        decoder = RGB_DECODER if not flags else decoder_of_files(find_bands((1, 4), theirs.train.paths).files)
        assert len(ours.train) == len(theirs.train) == 6
        assert ours.train.labels == theirs.train.labels
        for one, other in zip(ours.train.paths, theirs.train.paths, strict=True):
            assert torch.equal(decoder.read(one), decoder.read(other))
            assert one.endswith("tif" if flags else "bmp")


def test_shards_out_of_shards(shards, shard_command, tmp_path):
    code, _, err = shard_command(shards, "--out", tmp_path / "larger", "--images_per_shard", 20)
    assert code == 0, err
    old, new = splits_of(shards), splits_of(tmp_path / "larger")
    assert [path.open().read() for path in new.train.paths] == [path.open().read() for path in old.train.paths]
    assert new.train.labels == old.train.labels
