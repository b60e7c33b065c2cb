"""Images that were replaced between the stop and the resume of a run, under the same names: never a mixture."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import COLOURS, write_image
from PIL import Image

pytestmark = pytest.mark.recipe

FLAGS = ["--backbone", "shufflenet_v2_x0_5", "--num_epochs", 2, "--save_every_steps", 1, "--max_checkpoints", 99]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Class folders of files that are all of the same length."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        for split, count in (("train", 6), ("val", 3)):
            for index in range(count):
                path = tmp_path / "images" / split / name / f"{index}.bmp"
                write_image(path, colour, 100 * number + 10 * index + (split == "val"))
    return tmp_path / "images"


@pytest.fixture
def table(folders: Path) -> Path:
    path = folders / "images.csv"
    found = sorted(folders.rglob("*.bmp"))
    rows = [f"{image.relative_to(folders)},{image.parent.name},{image.parts[-3]}\n" for image in found]
    path.write_text("path,label,split\n" + "".join(rows))
    return path


def go_back(folder: Path) -> None:
    """Let a finished run be one that was killed after its second step."""
    for path in sorted((folder / "ckpt").glob("step_*.pt"))[2:]:
        path.unlink()
    (folder / "ckpt/last.pt").unlink()


def write_other_pixels(path: Path, target: Path) -> None:
    """Another image of the same length and times."""
    with Image.open(path) as image:
        other = image.transpose(Image.Transpose.ROTATE_90)
    status = path.stat()
    with target.open("r+b" if target.exists() else "wb") as file:  # in place, where it is the same file
        other.save(file, "BMP")
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert target.stat().st_size == status.st_size
    assert target.stat().st_mtime_ns == status.st_mtime_ns


def in_place(path: Path) -> None:
    write_other_pixels(path, path)


def by_another_file(path: Path) -> None:
    write_other_pixels(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def by_a_link(path: Path) -> None:
    write_other_pixels(path, path.with_suffix(".other"))
    path.unlink()
    path.symlink_to(path.with_suffix(".other"))


@pytest.mark.parametrize(("source", "cache"), [("folders", "auto"), ("table", "off")])
def test_a_replaced_image_is_noticed_when_a_run_goes_on(train_here, request, folders, source, cache):
    flags = (*FLAGS, "--dataset_path", request.getfixturevalue(source), "--cache", cache)
    assert train_here(*flags).code == 0
    for split, replace in (("val", in_place), ("train", by_another_file), ("val", by_a_link)):
        folder = folders.parent / "run"
        go_back(folder)
        best = (folder / "ckpt/best_model.pt").read_bytes()
        shutil.copytree(folders, folders.with_name("kept"), symlinks=True)
        replace(folders / split / "sea" / "2.bmp")
        run = train_here(*flags)
        assert run.code == 2, (run.out, run.err)
        assert f"the images of {split}: names and classes are the same, and what they show is not" in run.err
        assert (folder / "ckpt/best_model.pt").read_bytes() == best
        shutil.rmtree(folders)
        folders.with_name("kept").rename(folders)
        run = train_here(*flags)  # other inodes and times, and the same images
        assert run.code == 0, run.err
        assert "going on with" in run.out


def test_a_shard_that_was_written_anew_from_other_images_is_noticed(train_here, shard_command, folders, tmp_path):
    flags = (*FLAGS, "--dataset_path", tmp_path / "shards")

    def write() -> None:
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        assert shard_command(folders, "--out", tmp_path / "shards", "--images_per_shard", 3)[0] == 0

    write()
    assert train_here(*flags).code == 0
    go_back(tmp_path / "run")
    write()
    run = train_here(*flags)
    assert run.code == 0, run.err  # the same images
    go_back(tmp_path / "run")
    in_place(folders / "train" / "sea" / "2.bmp")
    write()
    run = train_here(*flags)
    assert run.code == 2, run.out
    assert "the images of train: names and classes are the same, and what they show is not" in run.err


def test_a_state_of_a_version_without_that_record_goes_on_and_says_so(train_here, folders, tmp_path):
    import torch

    flags = (*FLAGS, "--dataset_path", folders)
    assert train_here(*flags).code == 0
    go_back(tmp_path / "run")
    path = tmp_path / "run/ckpt/step_00000002.pt"
    content = torch.load(path, weights_only=True)
    for name in ("image_contents", "resumed_from"):
        del content[name]
    torch.save(content, path)
    run = train_here(*flags)
    assert run.code == 0, run.err
    assert "kept no record of what the images show" in run.out
    assert set(torch.load(tmp_path / "run/ckpt/last.pt", weights_only=True)["image_contents"]) == {"train", "val"}
