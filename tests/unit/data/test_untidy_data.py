"""Data as others leave them: unlabelled test images, folders of systems, tables that say less than they seem to."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import write_image

from sat_vg.backbone_finetuning.data.sources.class_folders import images_below
from sat_vg.backbone_finetuning.data.sources.class_names import look_alikes
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.splits import Splits, load_class_folders
from sat_vg.backbone_finetuning.data.sources.tables import TABLES
from sat_vg.backbone_finetuning.utils.errors import DataError


def fill(root: Path, *folders: str) -> Path:
    """Three images in each folder."""
    for folder in folders:
        for index in range(3):
            path = root / folder / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def load_table(path: Path) -> Splits:
    return TABLES.load_splits(ImageQuery(path=str(path), outside_flag="--allow_outside true"))


@pytest.fixture
def table(tmp_path: Path):
    """A function that writes a table of six images; ``{}`` in its lines stands for the path of the next one."""
    for index in range(6):
        write_image(tmp_path / f"im/{index}.png", (1, 2, 3), index, size=4)

    def write(*lines: str) -> Path:
        numbers = iter(range(6))
        path = tmp_path / "t.csv"
        path.write_text(
            "".join(line.format(f"im/{next(numbers)}.png") + "\n" if "{}" in line else line + "\n" for line in lines)
        )
        return path

    return write


class TestFolders:
    @pytest.mark.parametrize("test", ["test", "Test", "testing"])
    @pytest.mark.parametrize("train", ["train", "Train"])
    def test_unlabelled_test_images_are_no_class_and_no_error(self, tmp_path, train, test):
        splits = load_class_folders(fill(tmp_path, f"{train}/a", f"{train}/b", test))
        assert splits.class_names == ("a", "b")
        assert splits.test is None
        assert f"not used: {test!r}" in splits.description

    def test_neither_are_they_beside_val(self, tmp_path):
        splits = load_class_folders(fill(tmp_path, "train/a", "train/b", "val/a", "test", "more/a"))
        assert (len(splits.train), len(splits.val), splits.test) == (6, 3, None)
        assert "not used: 'more', 'test' ('test' has no class folders" in splits.description

    def test_unlabelled_val_images_are_an_error_that_says_so(self, tmp_path):
        with pytest.raises(DataError, match="/val' holds images but no class folders"):
            load_class_folders(fill(tmp_path, "train/a", "train/b", "val"))

    def test_splits_within_the_classes(self, tmp_path):
        (note,) = load_class_folders(fill(tmp_path, "a/train", "a/val", "b/train", "b/val")).notes
        assert "ROOT/train/CLASS" in note
        assert "--train_split" not in note

    def test_splits_within_one_of_the_folders(self, tmp_path):
        note, _ = load_class_folders(fill(tmp_path, "images/train/a", "images/val/a", "masks/train", "x")).notes
        assert f"give this folder: {str(tmp_path / 'images')!r}" in note

    @pytest.mark.parametrize(
        "name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
    )
    def test_what_systems_leave_behind_is_no_class_and_no_image(self, tmp_path, name):
        splits = load_class_folders(fill(tmp_path, "a", "b", name, f"a/{name}/1.jpg"))
        assert splits.class_names == ("a", "b")
        assert len(splits.train) + len(splits.val) == 6
        assert len(images_below(tmp_path, Counter())) == 6


class TestNamesOfFiles:
    """Images that are none of the class that their folder names."""

    @staticmethod
    def notes(root: Path, *names: str) -> tuple[str, ...]:
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return load_class_folders(root).notes

    @pytest.mark.parametrize(
        "folders", [("images", "masks"), ("A", "B", "label"), ("img", "Ground_Truth"), ("x", "GT")]
    )
    def test_folders_of_masks_are_no_classes(self, tmp_path, folders):
        (note,) = self.notes(tmp_path, *(f"{folder}/{index}.png" for folder in folders for index in range(4)))
        assert f"the folder {folders[-1]!r} is read as a class" in note
        assert f"called as those of {folders[0]!r}" in note
        assert "segmentation" in note

    def test_a_class_of_another_name_or_other_files_is_one(self, tmp_path):
        fill(tmp_path, "forest", "sea")
        assert not self.notes(tmp_path, *(f"label/of_{index}.jpg" for index in range(4)))

    @pytest.mark.parametrize("form", ["{}_mask.png", "{}-GT.jpg", "{}.label.png", "{}_seg.tif"])
    def test_masks_beside_images(self, tmp_path, form):
        fill(tmp_path, "forest", "sea")
        (note,) = self.notes(tmp_path, *(f"sea/{form.format(index)}" for index in range(2)))
        assert "2 images have names as masks" in note
        assert form.format(0) in note

    @pytest.mark.parametrize("form", ["{}_rot90.jpg", "{}_aug_1.jpg", "{}-flip.png", "{} mirrored.jpg"])
    def test_altered_copies_where_val_is_drawn(self, tmp_path, form):
        fill(tmp_path / "own", "forest", "sea")
        (note,) = self.notes(tmp_path / "own", *(f"sea/{form.format(index)}" for index in range(2)))
        assert "2 images seem by their names to be altered copies" in note
        assert "--group_column" in note
        fill(tmp_path / "split", "train/forest", "train/sea", "val/forest", "val/sea")
        assert not self.notes(tmp_path / "split", *(f"train/sea/{form.format(index)}" for index in range(2)))

    @pytest.mark.parametrize(
        "name", ["unmask.jpg", "0mask.jpg", "7_mask.jpg", "0_masked.jpg", "0_rotterdam.jpg", "0_1.jpg"]
    )
    def test_other_names_are_not(self, tmp_path, name):
        fill(tmp_path, "forest", "sea")
        assert not self.notes(tmp_path, f"sea/{name}", f"forest/{name}")

    @pytest.mark.parametrize("folder", ["test", "Val", "train"])
    def test_a_split_within_a_class_beside_its_images(self, tmp_path, folder):
        fill(tmp_path, "forest", f"forest/{folder}", "sea", "sea/test site")
        (note,) = load_class_folders(tmp_path).notes
        assert f"'forest/{folder}' beside images of the class" in note
        assert "ROOT/train/CLASS" in note


class TestNames:
    @pytest.mark.parametrize("copy", ["sea (1)", "sea - Copy", "sea copy", "Sea - Copy (2)", "sea-copy"])
    def test_copies_of_a_folder_look_alike(self, copy):
        (note,) = look_alikes(["sea", copy, "zoo"])
        assert repr(copy) in note
        assert not look_alikes([copy, "zoo"])

    @pytest.mark.parametrize(
        "pair",
        [
            ("1", "1.0"),
            ("1", "01"),
            ("sea", "sea\u200b"),
            ("sea", "'sea'"),
            ("dense_town", "dense town"),
            ("a", "\uff41"),
        ],
    )
    def test_names_that_look_alike_are_warned_of(self, pair):
        (note,) = look_alikes([*pair, "zoo"])
        assert all(repr(name) in note for name in pair)

    @pytest.mark.parametrize("pair", [("1", "-1"), ("1", "10"), ("sea", "seas"), ("1.5", "15"), ("c++", "c")])
    def test_others_are_not(self, pair):
        assert not look_alikes(pair)


class TestTables:
    def test_a_quote_that_is_left_open_swallows_no_lines(self, table):
        path = table("path,label", "{},a", '{},"b', "{},b", "{},a")
        with pytest.raises(DataError, match=r"t.csv', line 3, .*close or remove them"):
            load_table(path)

    def test_a_comma_in_a_name_cuts_nothing_off(self, table):
        with pytest.raises(DataError, match="line 3: has 3 cells, and the first line names 2"):
            load_table(table("path,label", "{},a", "{},town, dense", "{},a"))
        names = load_table(table("path,label", "{},a", '{}, "town, dense"', "{},a", "{},a,")).class_names
        assert names == ("a", "town, dense")

    @pytest.mark.parametrize("name", ["nan", "None", "NULL", "N/A"])
    def test_missing_values_as_classes_are_warned_of(self, table, name):
        (note,) = load_table(table("path,label", *["{},a"] * 3, *[f"{{}},{name}"] * 3)).notes
        assert f"the class {name!r} is called as tables write a missing value" in note

    @pytest.mark.parametrize("column", ["Split", "set", "subset", "fold", "is_train"])
    def test_a_column_that_seems_to_say_the_split_is_warned_of(self, table, column):
        lines = (f"path,label,{column}", *["{},a,x"] * 3, *["{},b,y"] * 3)
        (note,) = load_table(table(*lines)).notes
        assert f"the column {column!r} is not read" in note

    def test_tabs_between_classes_are_warned_of(self, table):
        (note,) = load_table(table("path,labels", "{},a\tb", *["{},a"] * 3, *["{},b"] * 2)).notes
        assert r"--label_separator '\t'" in note

    def test_backslashes_are_named(self, table):
        path = table("path,label", "{},a", "im\\1.png,b", "{},a")
        with pytest.raises(DataError, match=r"1 of the 3 images .* is not there(.|\n)*write / in place of"):
            load_table(path)


@pytest.mark.parametrize("mark", ["metrics.jsonl", "last.pt", "best_model.pt"])
@pytest.mark.parametrize("root", ["", "train"])
def test_folders_of_a_run_beside_the_classes_are_no_class(tmp_path, mark, root):
    folders = [f"{root}/{name}".strip("/") for name in ("a", "b", "logs/pictures")]
    fill(tmp_path, *folders)
    (tmp_path / root / "logs" / mark).touch()
    splits = load_class_folders(tmp_path)
    assert splits.class_names == ("a", "b")
    assert any("'logs' in" in note and "--log_dir" in note for note in splits.notes)
