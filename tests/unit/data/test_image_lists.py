"""Folders, lists and globs become paths with labels; a list cannot name files elsewhere."""

import os
from pathlib import Path

import pytest
from conftest import write_image

from sat_vg.backbone_finetuning.data.sources import table
from sat_vg.backbone_finetuning.data.sources.source import ImageList, ImageQuery
from sat_vg.backbone_finetuning.utils.errors import DataError


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_image(folder / name, (1, 2, 3), number, size=4)
    return folder


def list_images(path: str, **more: object) -> ImageList:
    return table.list_images(ImageQuery(path=path, **more))


def images_of(path: str) -> tuple[str, ...]:
    return list_images(path).paths


def relative(found, folder: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in found]


def test_class_folders_give_labels(tmp_path):
    found = list_images(str(images(tmp_path, "sea/b.png", "sea/deep/a.jpg", "town/c.TIF.png", "sea/.hidden.png")))
    assert relative(found.paths, tmp_path) == ["sea/b.png", "sea/deep/a.jpg", "town/c.TIF.png"]
    assert found.labels == ("sea", "sea", "town")
    assert found.class_names == ("sea", "town")
    assert found.description == "3 images in 2 classes (by folder)"


def test_split_folders_are_no_classes(tmp_path):
    found = list_images(str(images(tmp_path, "train/sea/a.png", "val/town/b.png", "test/sea/c.png")))
    assert relative(found.paths, tmp_path) == ["test/sea/c.png", "train/sea/a.png", "val/town/b.png"]
    assert found.labels == ("sea", "sea", "town")


def test_classes_may_be_called_as_splits(tmp_path):
    found = list_images(str(images(tmp_path, "train/a.png", "bus/b.png")))
    assert found.labels == ("bus", "train")


def test_images_outside_class_folders_are_not_labelled(tmp_path):
    found = list_images(str(images(tmp_path, "a.png", "sea/b.png")))
    assert found.labels is None
    assert found.class_names == ()
    assert len(found) == 2


def test_links_are_followed_and_loops_end(tmp_path):
    images(tmp_path / "elsewhere", "far.png")
    root = images(tmp_path / "root", "near.png")
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "elsewhere")
    assert relative(images_of(str(root)), root) == ["near.png", "out/far.png"]


def test_globs(tmp_path):
    images(tmp_path, "a1.png", "b1.jpg", "deep/er/a2.png")
    (tmp_path / "a3.txt").write_text("no image")
    assert relative(images_of(f"{tmp_path}/a*"), tmp_path) == ["a1.png"]
    assert relative(images_of(f"{tmp_path}/**/a*"), tmp_path) == ["a1.png", "deep/er/a2.png"]
    with pytest.raises(DataError, match="matches nothing"):
        images_of(f"{tmp_path}/c*")
    with pytest.raises(DataError, match="only names that are no image's"):
        images_of(f"{tmp_path}/*.txt")


def test_a_name_with_brackets_is_a_file_first(tmp_path):
    images(tmp_path, "a[1].png")
    assert relative(images_of(f"{tmp_path}/a[1].png"), tmp_path) == ["a[1].png"]


def test_text_list(tmp_path):
    (tmp_path / "list.txt").write_text("\ufeffone.png\r\n\nsub/two words.png\n", encoding="utf-8")
    found = list_images(f"{tmp_path}/list.txt")
    assert relative(found.paths, tmp_path) == ["one.png", "sub/two words.png"]
    assert found.labels is None


def test_table(tmp_path):
    (tmp_path / "list.csv").write_text('label,size,path\nsea,3,"a, b.png"\n\n"two\nlines",4,c.png\n')
    found = list_images(f"{tmp_path}/list.csv")
    assert relative(found.paths, tmp_path) == ["a, b.png", "c.png"]
    assert found.labels == ("sea", "two\nlines")
    (tmp_path / "plain.csv").write_text("path\na.png\n")
    assert list_images(f"{tmp_path}/plain.csv").labels is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"file,label\na.png,x\n", "no column 'path'; its first line holds 'file', 'label'"),
        ("list.csv", b"path;label\na.png;x\n", "with commas between"),
        ("list.csv", b"", "first line holds nothing"),
        ("list.csv", b"path,label\na.png,x\nb.png,\n", "line 3: has no label"),
        ("list.csv", b"path,label\n,x\n", "line 2: has no path"),
        ("list.csv", b"path\n", "names no image"),
        ("list.csv", b"path\na\0.png\n", "NUL"),
        ("list.txt", b"a\0.png\n", "NUL"),
        ("list.txt", b"\n \n", "names no image"),
        ("list.txt", b"\xff\xfe\x00", "must be text in UTF-8"),
        ("list.csv", b"path\n" + b"x" * 200_000, "cannot be read"),
    ],
)
def test_what_is_no_list(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list_images(str(tmp_path / name))


@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_a_list_names_nothing_outside_its_folder(tmp_path, ending):
    images(tmp_path, "secret.png", "data/own.png")
    (tmp_path / "data/link").symlink_to(tmp_path)
    (tmp_path / "data/link.png").symlink_to(tmp_path / "secret.png")
    path = tmp_path / f"data/list.{ending}"
    head = "path\n" if ending == "csv" else ""
    for given in ("../secret.png", f"{tmp_path}/secret.png", "link/secret.png", "link.png", "x/../../secret.png"):
        path.write_text(f"{head}own.png\n{given}\n")
        with pytest.raises(DataError, match=r"leads out of the list's folder.*--allow_outside"):
            list_images(str(path))
        allowed = list_images(str(path), allow_outside=True).paths[1]
        assert Path(allowed).resolve() == tmp_path / "secret.png"
    path.write_text(f"{head}own.png\nx/../own.png\n{tmp_path}/data/own.png\n")
    assert len(list_images(str(path))) == 3


def test_links_of_a_list_that_lead_nowhere_end(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n")
    try:  # older Pythons refuse such a link when the list is read, newer ones leave it to who opens it
        assert len(list_images(f"{tmp_path}/list.txt")) == 1
    except DataError as error:
        assert "cannot be read" in str(error)


def test_what_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images at any depth"):
        list_images(f"{tmp_path}/empty")
    with pytest.raises(DataError, match="there is no file or folder"):
        list_images(f"{tmp_path}/none.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is no file of up to"):
        list_images(f"{tmp_path}/pipe.csv")


def test_labels_are_read_as_in_a_training(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "list.csv").write_text("path,labels\na.png,\"['sea', 'e\u0301']\"\nb.png,[]\nc.png,sea\n")
    assert list_images(f"{tmp_path}/list.csv", label_separator=",").labels == ("sea, \u00e9", "(none)", "sea")


def test_folders_of_splits_by_other_names_are_no_classes(tmp_path):
    assert list_images(str(images(tmp_path, "Training/sea/a.png", "valid/town/b.png"))).class_names == ("sea", "town")
