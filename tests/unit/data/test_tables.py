"""Tables become splits; what is wrong with one is told with its line, and none names files elsewhere."""

import random
from collections import Counter
from pathlib import Path

import pytest
from conftest import write_image

from sat_vg.backbone_finetuning.data.sources.class_names import check_cells
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits, load_class_folders
from sat_vg.backbone_finetuning.data.sources.tables import TABLES
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import printable


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_image(folder / name, (1, 2, 3), number, size=4)
    return folder


def table(folder: Path, *lines: str, name: str = "images.csv") -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def load_table(path: Path, **options: object) -> Splits:
    return TABLES.load_splits(ImageQuery(path=str(path), outside_flag="--allow_outside true", **options))


def is_table(path: Path) -> bool:
    return TABLES.takes(ImageQuery(path=str(path)))


def content(split: Split | None, folder: Path) -> list[tuple[str, str]]:
    assert split is not None
    return [
        (Path(path).relative_to(folder).as_posix(), split.name_of(label))
        for path, label in zip(split.paths, split.labels, strict=True)
    ]


def test_one_class_an_image_and_a_column_of_splits(tmp_path):
    images(tmp_path, "a.png", "b.png", "deep/c.png", "d.png", "e.png")
    path = table(
        tmp_path, "size,split,path,label", "1,val,d.png,sea", "2,train,b.png,town", "3,train,a.png,sea", "",
        "4,test,e.png,town", "5,train,deep/c.png,sea",
    )  # fmt: skip
    splits = load_table(path)
    assert splits.class_names == ("sea", "town")
    assert content(splits.train, tmp_path) == [("a.png", "sea"), ("deep/c.png", "sea"), ("b.png", "town")]
    assert content(splits.val, tmp_path) == [("d.png", "sea")]
    assert content(splits.test, tmp_path) == [("e.png", "town")]
    assert splits.train.labels == (0, 0, 1)
    assert splits.train.label_sets is None
    assert not splits.val_is_drawn
    assert splits.description == f"5 images in 2 classes (table {str(path)!r}): 3 train, 1 val, 1 test"


def test_several_classes_an_image_or_none(tmp_path):
    images(tmp_path, *(f"{name}.png" for name in "abcde"))
    path = table(
        tmp_path, "path,labels,split", "a.png,ships| sea ,train", "b.png,,train", "c.png,sea|ships|sea,train",
        "d.png,ships,val", "e.png,sea,test",
    )  # fmt: skip
    splits = load_table(path)
    assert splits.class_names == ("sea", "ships")
    assert splits.train.label_sets == splits.val.label_sets == ((), (0,), (0, 1), (1,))
    assert content(splits.train, tmp_path) == [("b.png", "(none)"), ("a.png", "sea, ships"), ("c.png", "sea, ships")]
    assert content(splits.val, tmp_path) == [("d.png", "ships")]
    assert content(splits.test, tmp_path) == [("e.png", "sea")]
    assert splits.train.class_counts() == [2, 2]


def test_a_split_by_seed_is_that_of_class_folders_whatever_the_order_of_lines(tmp_path):
    names = [f"{name}/{index}.png" for name in ("sea", "town", "wood") for index in range(10)]
    images(tmp_path, *names)
    folders = load_class_folders(tmp_path, seed=3)
    random.Random(0).shuffle(names)
    path = table(tmp_path, "path,label", *(f"{name},{name.partition('/')[0]}" for name in names))
    listed = load_table(path, seed=3)
    assert listed.val_is_drawn
    assert (listed.train, listed.val) == (folders.train, folders.val)
    assert listed.description.endswith(", split by seed 3: 24 train, 6 val")
    assert load_table(path, seed=4).val != listed.val
    # An empty column says as much as none; without a line for val, val comes out of train, and test stays test.
    empty = table(tmp_path, "path,label,split", *(f"{name},{name.partition('/')[0]}," for name in names))
    assert load_table(empty, seed=3).val == listed.val
    parts = {name: "test" if name.endswith("9.png") else "train" for name in names}
    held = table(tmp_path, "path,label,split", *(f"{n},{n.partition('/')[0]},{parts[n]}" for n in names))
    splits = load_table(held, val_fraction=0.34)
    assert [len(split) for split in splits.parts] == [18, 9, 3]
    assert splits.val_is_drawn
    assert "no line says 'val', so val is 34% of 'train' by seed 0" in splits.description


def test_a_split_by_seed_of_several_classes_is_stratified(tmp_path):
    rows = [("sea", "sea|ships", "", "town|sea")[index % 4] for index in range(80)]
    images(tmp_path, *(f"{index}.png" for index in range(80)))
    lines = [f"{index}.png,{labels}" for index, labels in enumerate(rows)]
    splits = load_table(table(tmp_path, "path,labels", *lines), seed=1)
    assert splits.val.class_counts() == [12, 4, 4]  # of 60, 20 and 20
    assert len(splits.val) == 16
    assert not set(splits.train.paths) & set(splits.val.paths)
    assert len(splits.train) + len(splits.val) == 80
    random.Random(0).shuffle(lines)
    assert load_table(table(tmp_path, "path,labels", *lines), seed=1) == splits
    assert load_table(table(tmp_path, "path,labels", *lines), seed=2).val != splits.val


def test_splits_by_other_names(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png")
    path = table(tmp_path, "path,label,split", "a.png,x,fit", "b.png,y,fit", "c.png,x,dev")
    splits = load_table(path, train_split="fit", val_split="dev")
    assert [len(split) for split in splits.parts] == [2, 1]
    with pytest.raises(
        DataError, match=r"line 2: there is no split 'fit', only train, val, test; write one of these"
    ):
        load_table(path)


def test_the_test_images_as_val(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png", "d.png")
    path = table(tmp_path, "path,label,split", "a.png,x,train", "b.png,y,train", "c.png,x,test", "d.png,y,test")
    splits = load_table(path, val_split="test")
    assert [len(split) for split in splits.parts] == [2, 2]
    assert not splits.val_is_drawn


def test_as_spreadsheets_and_people_write_it(tmp_path):
    names = ["a, b.png", "two words.png", "grün/été 日本.png", 'say "so".png']
    images(tmp_path, *names)
    rows = (
        '\ufeffpath, label \r\n"a, b.png",x\r\n two words.png ,y\r\n\r\n'
        'grün/été 日本.png,"x\r\nz"\r\n"say ""so"".png",y'
    )
    (tmp_path / "images.CSV").write_bytes(rows.encode("utf-8"))
    assert is_table(tmp_path / "images.CSV")
    splits = load_table(tmp_path / "images.CSV", val_fraction=0.4)
    assert splits.class_names == ("x", "x\r\nz", "y")
    found = [*content(splits.train, tmp_path), *content(splits.val, tmp_path)]
    assert sorted(found) == sorted(zip(names, ["x", "y", "x\r\nz", "y"], strict=True))


def test_odd_labels_are_allowed_and_shown_safely(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png")
    path = table(
        tmp_path, "path,label,split", "a.png,<script>,train", "b.png,\x1b[31mred,train", "c.png,\x1b]0;x,val"
    )
    with pytest.raises(DataError, match="val has classes that train lacks") as caught:
        load_table(path)
    assert "\x1b" not in printable(str(caught.value))
    path = table(
        tmp_path, "path,label,split", "a.png,<script>,train", "b.png,\x1b[31mred,train", "c.png,<script>,val"
    )
    assert load_table(path).class_names == ("\x1b[31mred", "<script>")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a.png,x"], r"has no column 'path'; its first line holds 'file', 'label'"),
        (["path;label", "a.png;x"], "with commas between"),
        (["path,class", "a.png,x"], r"has no column 'label'; its first line holds 'path', 'class'. Add the column"),
        (["path,Label", "a.png,x"], r"has no column 'label' \(case counts\)"),
        (["path,label,labels", "a.png,x,x"], "a column 'label' and a column 'labels'; keep the one"),
        (["path,path,label", "a.png,b.png,x"], "the column 'path' more than once"),
        (["path,label", "a.png,x", "b.png,"], r"images.csv', line 3: has no label. Fill it in, or remove the line$"),
        (["path,label", ",x"], "line 2: has no path"),
        (["path,label,split", "a.png,x,train", "b.png,y"], "line 3: has no split, and other lines have one"),
        (
            ["path,label,split", "a.png,x,train", "b.png,y,Val"],
            "line 3: there is no split 'Val', only train, val, test",
        ),
        (["path,label,split", "a.png,x,val", "b.png,y,test"], "no line with the split 'train'; there is nothing"),
        (["path,labels", "a.png,x", "b.png,y||z"], r"line 3: labels = 'y\|\|z' has no name before, between or after"),
        (["path,label", "a.png,x", "./a.png,y"], r"line 3: './a.png' is in line 2 already; keep one of them"),
        (["path,label", "a.png,x", "b.png,x"], "train has only one class, 'x', but a classifier needs at least two"),
        (["path,labels", "a.png,", "b.png,"], "train has no class at all"),
        (
            ["path,label,split", "a.png,x,train", "b.png,y,train", "c.png,X,val"],
            r"val has classes that train lacks: 'X' \(line 4; there is 'x'\); classes are matched by name",
        ),
        (["path,label", "a.png,x", "b.png,y"], "no image is left for val"),
        (["path,label"], "names no image"),
    ],
)
def test_what_is_refused(tmp_path, lines, message):
    images(tmp_path, "a.png", "b.png", "c.png")
    with pytest.raises(DataError, match=message):
        load_table(table(tmp_path, *lines))


def test_images_that_are_not_there_are_listed(tmp_path):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    missing = ["folder.png", "nowhere.png", f"{'x' * 300}.png", *(f"{index}.png" for index in range(9))]
    path = table(tmp_path, "path,label", "a.png,x", "b.png,y", *(f"{name},x" for name in missing))
    with pytest.raises(DataError) as caught:
        load_table(path)
    message = str(caught.value)
    assert message.startswith(f"12 of the 14 images of {str(path)!r} are not there:\n  line 4: 'folder.png'\n")
    assert "  line 13: '6.png'\n  and 2 more\n" in message
    assert f"relative to the table's folder, {str(tmp_path)!r}" in message


def test_a_table_names_nothing_outside_its_folder(tmp_path):
    images(tmp_path, "secret.png", "data/own.png", "data/other.png")
    (tmp_path / "data/link").symlink_to(tmp_path)
    (tmp_path / "data/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leads out of"):
        load_table(table(tmp_path / "data", "path,label", "own.png,x", "..,y"))
    for given in ("../secret.png", f"{tmp_path}/secret.png", "link/secret.png", "link.png", "x/../../secret.png"):
        lines = ("path,label,split", "own.png,x,train", "other.png,y,train", f"{given},y,val")
        path = table(tmp_path / "data", *lines)
        with pytest.raises(DataError, match=r"line 4: .*leads out of the list's folder.*add --allow_outside true"):
            load_table(path)
        if given != "x/../../secret.png":  # which no open() finds, as there is no x
            assert Path(load_table(path, allow_outside=True).val.paths[0]).resolve() == tmp_path / "secret.png"


def test_relative_and_absolute_paths_go_together(tmp_path, monkeypatch):
    images(tmp_path, "data/a.png", "data/b.png", "data/c.png")
    path = table(
        tmp_path / "data", "path,label,split", "a.png,x,train", f"{tmp_path}/data/b.png,y,train", "c.png,x,val"
    )
    monkeypatch.chdir(tmp_path)
    relative = load_table(path.relative_to(tmp_path))
    assert relative.train.paths == (f"{tmp_path}/data/a.png", f"{tmp_path}/data/b.png")
    table(tmp_path / "data", "path,label,split", "a.png,x,train", "b.png,y,train", "c.png,x,val")
    assert load_table(path.relative_to(tmp_path)).train.paths == ("data/a.png", "data/b.png")


def test_what_is_a_table(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    assert is_table(tmp_path / "a.csv")
    assert not is_table(tmp_path / "folder.csv")
    assert not is_table(tmp_path / "a.png")
    with pytest.raises(DataError, match="there is no file"):
        load_table(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="must be text in UTF-8"):
        load_table(tmp_path / "b.csv")


def cells_in_table(folder: Path, column: str, cells: list[str], times: int = 4) -> Path:
    """A table with each cell so many times, in rows of images that are there."""
    rows = [(f"{index}.png", cell) for index, cell in enumerate(cells * times)]
    images(folder, *(name for name, _ in rows))
    quoted = [f'{name},"{cell.replace(chr(34), 2 * chr(34))}"' for name, cell in rows]
    return table(folder, f"path,{column}", *quoted)


@pytest.mark.parametrize(
    ("separator", "cells"),
    [
        (",", ["sea,ships", " ships , sea", "", "sea"]),
        (",", ["['sea', 'ships']", '["ships","sea"]', "[]", "['sea']"]),
        (";", ["sea;ships", "ships; sea", "", "sea"]),
        (" ", ["sea ships", "ships   sea", "", "sea"]),
        (" ", ["['sea' 'ships']", "['ships' 'sea']", "[]", "['sea']"]),
        ("|", ["sea|ships", "ships|sea", "", "sea"]),
    ],
)
def test_other_separators_are_read_once_they_are_named(tmp_path, separator, cells):
    splits = load_table(cells_in_table(tmp_path, "labels", cells), label_separator=separator, val_fraction=0.25)
    found = Counter(classes for part in splits.parts for _, classes in content(part, tmp_path))
    assert found == {"sea, ships": 8, "(none)": 4, "sea": 4}
    assert splits.class_names == ("sea", "ships")
    assert not splits.notes


@pytest.mark.parametrize(
    ("cells", "separator", "count"),
    [
        (["sea,ships", "sea", "ships"], ",", "1 cell holds"),
        (["sea; ships", "sea;town", "town"], ";", "2 cells hold"),
        (["['sea','ships']", "['sea']", "['town']"], ",", "3 cells hold"),
        (["sea ships", "sea", "ships", "town"], " ", "1 cell holds"),
        (["sea ships", "ships town", "town sea"], " ", "3 cells hold"),
        (["sea/ships", "sea", "ships"], "/", "1 cell holds"),
    ],
)
def test_cells_with_another_separator_are_warned_of(cells, separator, count):
    (note,) = check_cells(cells, "|", "labels")
    assert count in note
    assert repr(cells[0]) in note
    assert f"--label_separator {separator!r}" in note


@pytest.mark.parametrize(
    "cells",
    [["dense town", "sparse town", "tennis court"], ["sea|dense town", "sea", "dense town"], ["a-b", "a", "b"]],
)
def test_spaces_within_names_are_not(cells):
    assert not check_cells(cells, "|", "labels")


@pytest.mark.parametrize("separator", ["|", " "])
@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize(
    "cells",
    [
        ["1 0 0", "0 1 0", "", "1 1 0"],
        ["[1, 0, 0]", "[0, 0, 1]"],
        ["1|0|0", "0|0|0"],
        ["0;0", "1;0"],
        ["1.0 0.0 0.0"],
    ],
)
def test_zeros_and_ones_for_each_class_are_no_names(cells, column, separator):
    (note,) = check_cells(cells, separator, column)
    assert f"a 0 or 1 for each class, such as {cells[0]!r}" in note
    assert "'sea|ships'" in note
    assert "--label_separator" not in note


@pytest.mark.parametrize("cells", [["0", "1", "1"], ["0|1", "1", "0"], ["0|1", "1|0"], ["10", "100"], ["1 0 2"], []])
def test_classes_that_are_called_0_and_1_are_names(cells):
    assert not any("for each class" in note for note in check_cells(cells, "|", "labels"))


def test_doubts_about_cells_are_handed_on(tmp_path):
    (note,) = load_table(cells_in_table(tmp_path, "labels", ["sea,ships", "sea", "ships"])).notes
    assert "images.csv" in note
    assert "4 cells hold what looks like several classes with ',' between, such as 'sea,ships'" in note


def test_several_classes_in_the_column_of_one_are_warned_of(tmp_path):
    (note,) = load_table(cells_in_table(tmp_path, "label", ["a", "a|b", "b"])).notes
    assert "4 cells hold what looks like several classes, such as 'a|b'" in note
    assert "call the column labels" in note
    assert not load_table(cells_in_table(tmp_path / "plain", "label", ["harbor, small", "a b", "a", "b"])).notes


def test_both_forms_of_unicode_are_one_class(tmp_path):
    images(tmp_path, *(f"{index}.png" for index in range(4)))
    path = table(
        tmp_path, "path,label,split", "0.png,\u00e9t\u00e9,train", "1.png,e\u0301te\u0301,train", "2.png,sea,train",
        "3.png,e\u0301te\u0301,val",
    )  # fmt: skip
    splits = load_table(path)
    assert splits.class_names == ("sea", "\u00e9t\u00e9")
    assert splits.train.class_counts() == [1, 2]


def test_groups_are_named_in_every_line_and_told_where_test_has_them_too(tmp_path):
    images(tmp_path, *(f"{number}.png" for number in range(12)))
    rows = [f"{n}.png,{'sea' if n % 2 else 'town'},{'test' if n > 9 else 'train'},flight{n // 2}" for n in range(12)]
    path = table(tmp_path, "path,label,split,flight", *rows)
    assert load_table(path, group_column="flight").notes == ()
    path = table(tmp_path, "path,label,split,flight", *rows[:-1], "11.png,sea,test,flight0")
    (note,) = load_table(path, group_column="flight").notes
    assert note == (
        f"table {str(path)!r}: 1 of the groups of test is in train or val, too, such as 'flight0': results on test "
        "flatter the model"
    )
    path = table(tmp_path, "path,label,split,flight", *rows[:4], "4.png,town,train, ", *rows[5:])
    with pytest.raises(DataError, match=r"line 6: has no flight \(group_column\)\. Fill it in, or remove the line"):
        load_table(path, group_column="flight")
