"""Class folders in both layouts, the seeded split, and a helpful word for every wrong folder."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sat_vg.backbone_finetuning.data.sources.splits import Split, load_class_folders
from sat_vg.backbone_finetuning.utils.errors import DataError


def fill(root, **counts):
    """Empty files ``root/CLASS/NNN.jpg``; sources looks at names only."""
    for name, count in counts.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (folder / f"{index:03}.jpg").touch()
    return root


def refusal(root, **options):
    with pytest.raises(DataError) as caught:
        load_class_folders(root, **options)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def relative(split, root):
    return [Path(path).relative_to(root).as_posix() for path in split.paths]


class TestSplitBySeed:
    def test_sizes_order_and_description(self, tmp_path):
        splits = load_class_folders(fill(tmp_path, b=10, a=7, c=1), seed=3)
        assert splits.class_names == splits.val.class_names == ("a", "b", "c")
        assert splits.test is None
        assert splits.val.class_counts() == [1, 2, 0]  # round(7 * 0.2), round(10 * 0.2), never the last image
        assert splits.train.class_counts() == [6, 8, 1]
        assert len(splits.train) == 15
        assert splits.description == "18 images in 3 classes, split by seed 3: 15 train, 3 val"
        everything = sorted(splits.train.paths + splits.val.paths)
        assert everything == sorted(str(path) for path in tmp_path.rglob("*.jpg"))
        assert list(splits.train.paths) == sorted(splits.train.paths)
        for split in (splits.train, splits.val):
            assert [split.class_names[label] for label in split.labels] == [
                Path(path).parent.name for path in split.paths
            ]

    def test_known_split(self, tmp_path):
        """The split of a seed is part of the results, so it may never change."""
        val = load_class_folders(fill(tmp_path, a=6, b=6), val_fraction=0.34, seed=7).val
        assert relative(val, tmp_path) == ["a/001.jpg", "a/004.jpg", "b/000.jpg", "b/004.jpg"]

    def test_independent_of_file_system_order(self, tmp_path):
        first, second = tmp_path / "first", tmp_path / "second"
        names = [f"{folder}/{stem}.png" for folder in "xy" for stem in ("b", "a", "sub/c", "sub-d", "e", "B", "ä")]
        for root, order in ((first, names), (second, reversed(names))):
            for name in order:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).touch()
        one, two = load_class_folders(first, val_fraction=0.4), load_class_folders(second, val_fraction=0.4)
        assert relative(one.train, first) == relative(two.train, second)
        assert relative(one.val, first) == relative(two.val, second)

    def test_sorted_by_whole_relative_path(self, tmp_path):
        names = ["train/a/b/1.jpg", "train/a/c.jpg", "train/a/c/1.jpg", "train/b/1.jpg", "val/a/1.jpg"]
        for name in names:
            fill(tmp_path, **{name.rpartition("/")[0]: 0})
            (tmp_path / name).touch()
        assert relative(load_class_folders(tmp_path).train, tmp_path) == names[:4]

    def test_seeds_differ_and_classes_are_drawn_apart(self, tmp_path):
        fill(tmp_path, a=50, b=50)
        vals = [relative(load_class_folders(tmp_path, seed=seed).val, tmp_path) for seed in (0, 1)]
        assert vals[0] != vals[1]
        assert [name[2:] for name in vals[0][:10]] != [name[2:] for name in vals[0][10:]]

    def test_large_fraction_leaves_one_in_train(self, tmp_path):
        splits = load_class_folders(fill(tmp_path, a=3, b=2), val_fraction=0.99)
        assert splits.train.class_counts() == [1, 1]

    def test_only_single_images(self, tmp_path):
        assert "no image is left for val" in refusal(fill(tmp_path, a=1, b=1))


class TestSplitFolders:
    def test_names_decide_and_missing_classes_shift_nothing(self, tmp_path):
        fill(tmp_path, train__a=2, train__b=2, train__c=2, val__c=3, test__b=1, notes=0)
        splits = load_class_folders(tmp_path)
        assert splits.class_names == ("a", "b", "c")
        assert splits.val.labels == (2, 2, 2)
        assert splits.val.class_counts() == [0, 0, 3]
        assert splits.test is not None
        assert splits.test.labels == (1,)
        assert splits.test.class_names == ("a", "b", "c")
        assert splits.description == "10 images in 3 classes: 6 train, 3 val, 1 test"

    def test_own_names_for_the_folders(self, tmp_path):
        fill(tmp_path, learn__a=1, learn__b=1, check__a=1)
        splits = load_class_folders(tmp_path, train_split="learn", val_split="check")
        assert (len(splits.train), len(splits.val), splits.val.name) == (2, 1, "val")

    def test_the_test_folder_as_val(self, tmp_path):
        fill(tmp_path, train__a=2, train__b=2, test__a=1, test__b=1)
        splits = load_class_folders(tmp_path, val_split="test")
        assert [len(split) for split in splits.parts] == [4, 2]
        assert not splits.val_is_drawn

    def test_without_val_it_is_split_off_train(self, tmp_path):
        fill(tmp_path, train__a=10, train__b=10, test__a=4, more__a=1)
        splits = load_class_folders(tmp_path, val_fraction=0.125, seed=5)
        assert (len(splits.train), splits.val.class_counts()) == (18, [1, 1])
        assert len(splits.test) == 4
        assert all("/train/" in path for path in splits.val.paths)
        assert splits.description == (
            "24 images in 2 classes, no folder 'val', so val is 12.5% of 'train' by seed 5; not used: 'more': "
            "18 train, 2 val, 4 test"
        )

    def test_unknown_class(self, tmp_path):
        fill(tmp_path, train__a=1, train__b=1, val__a=1, val__B=1, val__d=1)
        message = refusal(tmp_path)
        assert repr(str(tmp_path / "val")) in message
        assert "'train' lacks: 'B' (there is 'b'), 'd'" in message

    def test_val_without_images(self, tmp_path):
        fill(tmp_path, train__a=1, train__b=1, val__a=0)
        assert f"{str(tmp_path / 'val')!r} holds no images" in refusal(tmp_path)

    def test_val_without_train(self, tmp_path):
        message = refusal(fill(tmp_path, learn__a=1, val__a=1))
        assert "has a folder 'val' but no 'train'; it holds 'learn', 'val'" in message
        assert "--train_split" in message

    def test_train_may_be_a_class(self, tmp_path):
        assert load_class_folders(fill(tmp_path, train=4, ship=4, plane=4)).class_names == (
            "plane",
            "ship",
            "train",
        )

    def test_images_directly_in_train(self, tmp_path):
        assert "/train' holds images but no class folders" in refusal(fill(tmp_path, train=3, val=3))


class TestFoldersByOtherNames:
    @pytest.mark.parametrize(
        ("train", "val", "test"),
        [("Train", None, "Test"), ("training", "validation", None), ("TRAIN", "VAL", None),
         ("train", "valid", "test"),
         ("seg_train", None, "seg_test"), ("train_images", "val_images", None), ("TrainSet", "ValSet", "TestSet"),
         ("trainset", "dev", "testset"), ("EuroSAT-train", "EuroSAT-eval", None), ("Training", None, None),
         ("train", "Validation", "Testing"), ("training_data", "val", "holdout"),
         ("trainval", None, "test"), ("JPEGImages-trainval", None, "JPEGImages-test")],
    )  # fmt: skip
    def test_they_are_taken_for_splits_and_said(self, tmp_path, train, val, test):
        named = {"train": train, "val": val, "test": test}
        for number, folder in enumerate(filter(None, named.values())):
            fill(tmp_path, **{f"{folder}__forest": 10 - number, f"{folder}__sea": 10})
        splits = load_class_folders(tmp_path)
        assert splits.class_names == ("forest", "sea")
        assert {Path(path).parent.parent.name for path in splits.train.paths} == {train}
        assert {Path(path).parent.parent.name for path in splits.val.paths} == {val or train}
        assert splits.val_is_drawn is (val is None)
        assert (splits.test is not None) is (test is not None)
        told = [f"{folder!r} ({role})" for role, folder in named.items() if folder]
        assert f"split folders {', '.join(told)}" in splits.description
        assert not splits.notes

    def test_a_folder_of_the_same_name_within(self, tmp_path):
        fill(tmp_path, seg_train__seg_train__a=5, seg_train__seg_train__b=5, seg_test__seg_test__a=3, seg_pred=7)
        splits = load_class_folders(tmp_path)
        assert splits.class_names == ("a", "b")
        assert len(splits.test) == 3
        assert "not used: 'seg_pred'" in splits.description
        fill(tmp_path / "usual", train__train__a=3, train__train__b=3, val__val__a=1, val__val__b=1)
        assert load_class_folders(tmp_path / "usual").val.class_counts() == [1, 1]

    def test_images_directly_in_them_make_them_classes(self, tmp_path):
        splits = load_class_folders(fill(tmp_path, Train=4, Bus=4, Test=4, valley=3, training_ground=2))
        assert splits.class_names == ("Bus", "Test", "Train", "training_ground", "valley")

    def test_one_of_several_classes_may_be_called_so_and_hold_folders(self, tmp_path):
        fill(tmp_path, Train__2019=2, Train__2020=2, Bus__2019=2, Bus__2021=2, Boat__2020=2)
        assert load_class_folders(tmp_path).class_names == ("Boat", "Bus", "Train")

    def test_two_for_the_same_split_are_refused(self, tmp_path):
        fill(tmp_path, train_images__a=1, train_masks__a=1, val_images__a=1)
        message = refusal(tmp_path)
        assert "2 folders that could be train: 'train_images', 'train_masks'" in message
        assert "--train_split" in message
        fill(tmp_path, train_images__b=1)
        splits = load_class_folders(tmp_path, train_split="train_images")
        assert (len(splits.train), len(splits.val)) == (2, 1)

    def test_folders_that_share_no_class_are_left_alone(self, tmp_path):
        splits = load_class_folders(fill(tmp_path, train__a=5, train__b=5, dev__notes=1))
        assert splits.val_is_drawn
        assert "not used: 'dev'" in splits.description

    @pytest.mark.parametrize(("one", "other"), [("part1", "part2"), ("2019", "2020"), ("rgb", "msi")])
    def test_classes_that_all_hold_the_same_folders_are_warned_of(self, tmp_path, one, other):
        fill(tmp_path, **{f"{part}__{name}": 3 for part in (one, other) for name in ("forest", "sea", "town")})
        (note,) = load_class_folders(tmp_path).notes
        first, second = sorted((one, other))
        assert "all hold the folders 'forest', 'sea', 'town'" in note
        assert f"--train_split {first} --val_split {second}" in note
        splits = load_class_folders(tmp_path, train_split=first, val_split=second)
        assert (len(splits.train), len(splits.val), splits.notes) == (9, 9, ())

    def test_classes_with_folders_of_their_own_are_not(self, tmp_path):
        assert not load_class_folders(fill(tmp_path, a__x=2, a__y=2, b__z=2, b__x=2)).notes


COMPOSED, DECOMPOSED = "\u00e9t\u00e9", "e\u0301te\u0301"


class TestNames:
    def test_both_forms_of_unicode_are_one_class(self, tmp_path):
        fill(tmp_path, **{f"train__{COMPOSED}": 2, "train__sea": 2, f"val__{DECOMPOSED}": 3, "val__sea": 1})
        splits = load_class_folders(tmp_path)
        assert splits.class_names == ("sea", COMPOSED)
        assert splits.val.class_counts() == [1, 3]
        fill(tmp_path, **{f"train__{DECOMPOSED}": 1})
        splits = load_class_folders(tmp_path)
        assert splits.train.class_counts() == [2, 3]
        assert "2 folders named" in splits.notes[0]

    def test_a_copy_in_the_other_form_is_split_alike(self, tmp_path):
        for root, form in ((tmp_path / "one", COMPOSED), (tmp_path / "two", DECOMPOSED)):
            fill(root, **{form: 20, "sea": 20, "zoo": 20})
        one, two = (load_class_folders(tmp_path / name) for name in ("one", "two"))
        assert one.class_names == two.class_names
        assert [Path(path).name for path in one.val.paths] == [Path(path).name for path in two.val.paths]

    @pytest.mark.parametrize("pair", [("Forest", "forest"), ("sea", "sea "), ("dense town", "dense  Town")])
    def test_names_that_differ_in_case_or_spaces_are_warned_of(self, tmp_path, pair):
        (note,) = load_class_folders(fill(tmp_path, **dict.fromkeys((*pair, "zoo"), 3))).notes
        assert all(repr(name) in note for name in pair)
        assert "differ only in case or spaces" in note


class TestWhichFilesCount:
    def test_endings_depth_and_hidden_names(self, tmp_path):
        wanted = ["a/1.jpg", "a/2.JPEG", "a/3.Png", "a/deep/er/4.tif", "a/5.TIFF", "b/6.webp", "b/7.bmp", "b/a.b.jpg"]
        others = ["a/x.txt", "a/.x.jpg", "a/._1.jpg", "a/.git/x.jpg", ".c/x.jpg", "__MACOSX/a/x.jpg", "stray.jpg"]
        for name in wanted + others:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "a" / "folder.jpg").mkdir()
        splits = load_class_folders(tmp_path)
        assert sorted(relative(splits.train, tmp_path) + relative(splits.val, tmp_path)) == sorted(wanted)

    def test_links_are_followed_once(self, tmp_path):
        store = fill(tmp_path / "store", images=3)
        root = fill(tmp_path / "root", a=2, b=2)
        (root / "a" / "linked").symlink_to(store / "images")
        (root / "a" / "again").symlink_to(store / "images")
        (root / "a" / "loop").symlink_to(root / "a")
        (root / "a" / "self").symlink_to("self")
        (root / "a" / "self.jpg").symlink_to("self.jpg")
        (root / "c").symlink_to(store / "images")
        splits = load_class_folders(root)
        assert splits.class_names == ("a", "b", "c")
        paths = sorted(relative(splits.train, root) + relative(splits.val, root))
        assert [name for name in paths if name.startswith("a/")] == [
            "a/000.jpg",
            "a/001.jpg",
            "a/again/000.jpg",
            "a/again/001.jpg",
            "a/again/002.jpg",
            "a/self.jpg",  # leads nowhere, which decoding will tell
        ]
        assert [name for name in paths if name.startswith("c/")] == ["c/000.jpg", "c/001.jpg", "c/002.jpg"]

    def test_what_cannot_be_listed_is_not_passed_over(self):
        # Nothing is forbidden to root, so root becomes nobody, once everything is imported.
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders\n"
            "os.getuid() or os.setuid(65534)\n"
            "for path in sys.argv[:0:-1]:\n"
            "    try:\n"
            "        load_class_folders(Path(path))\n"
            "    except ValueError as error:\n"
            "        print(type(error).__name__, error)\n"
        )
        with tempfile.TemporaryDirectory() as open_to_all:  # pytest's own folders are closed to others
            Path(open_to_all).chmod(0o755)
            root = fill(Path(open_to_all), a=2, b=2)
            locked = root / "a" / "locked"
            locked.mkdir(mode=0)
            command = [sys.executable, "-c", code, str(root), str(locked / "inside")]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            locked.chmod(0o755)
        inside, listed = result.stdout.splitlines()
        assert inside.startswith(f"DataError cannot open {str(locked / 'inside')!r}: Permission denied")
        assert listed.startswith(f"DataError cannot list the folder {str(locked)!r}: Permission denied")


class TestWrongFolders:
    def test_parent_of_the_data_set(self, tmp_path):
        fill(tmp_path / "up" / "UCMerced", a=1, b=1)
        assert f"did you mean {str(tmp_path / 'up' / 'UCMerced')!r}?" in refusal(tmp_path / "up")
        assert f"did you mean {str(tmp_path / 'up' / 'UCMerced')!r}?" in refusal(tmp_path)

    def test_parent_of_split_folders(self, tmp_path):
        fill(tmp_path / "set", train__a=1, train__b=1, val__a=1)
        assert f"did you mean {str(tmp_path / 'set')!r}?" in refusal(tmp_path)

    def test_images_directly(self, tmp_path):
        (tmp_path / "a.jpg").touch()
        message = refusal(tmp_path)
        assert "holds images but no class folders" in message
        assert "ROOT/CLASS/image.jpg" in message

    def test_files(self, tmp_path):
        (tmp_path / "EuroSAT.ZIP").touch()
        (tmp_path / "list.csv").touch()
        assert "is an archive, not a folder; unpack it" in refusal(tmp_path / "EuroSAT.ZIP")
        assert "is a file, not a folder; give the folder" in refusal(tmp_path / "list.csv")
        assert "no class folders but archives: 'EuroSAT.ZIP'; unpack" in refusal(tmp_path)

    def test_missing(self, tmp_path):
        fill(tmp_path / "data", UCMerced=0, EuroSAT=0)
        message = refusal(tmp_path / "data" / "ucmerced2" / "train")
        assert f"the nearest that exists is {str(tmp_path / 'data')!r}, which holds 'UCMerced'" in message
        assert "which holds nothing named like 'zzz'" in refusal(tmp_path / "zzz")

    def test_empty_root(self, tmp_path):
        assert "holds no class folders" in refusal(tmp_path)

    def test_no_images_at_all(self, tmp_path):
        fill(tmp_path, a=0, b=0)
        (tmp_path / "a" / "x.ppm").touch()
        message = refusal(tmp_path)
        assert "holds no images at any depth" in message
        assert ".jpg .jpeg .jfif .png .tif .tiff .webp .bmp .jp2" in message

    def test_empty_classes(self, tmp_path):
        message = refusal(fill(tmp_path, a=1, b=0, c=0))
        assert "2 class folders without images: 'b', 'c'; fill or remove" in message

    def test_one_class(self, tmp_path):
        assert "holds one class, 'a', but a classifier needs at least two" in refusal(fill(tmp_path, a=3))

    def test_long_lists_are_cut(self, tmp_path):
        message = refusal(fill(tmp_path, a=1, **{f"e{index:02}": 0 for index in range(15)}))
        assert "15 class folders" in message
        assert "'e09' and 5 more" in message
        assert "e10" not in message

    def test_control_characters_are_escaped(self, tmp_path):
        fill(tmp_path, a=1)
        (tmp_path / "b\x1b[31m\n").mkdir()
        message = refusal(tmp_path)
        assert r"'b\x1b[31m\n'" in message
        assert "\x1b" not in message


class TestWithout:
    def test_leaves_out_everywhere(self, tmp_path):
        splits = load_class_folders(fill(tmp_path, train__a=2, train__b=2, val__b=2, test__a=1))
        bad = [splits.train.paths[0], splits.val.paths[1], splits.test.paths[0]]
        kept = splits.without(bad)
        assert kept.train.paths == splits.train.paths[1:]
        assert kept.train.labels == (0, 1, 1)
        assert kept.val.paths == splits.val.paths[:1]
        assert kept.val.labels == (1,)
        assert kept.test is None
        assert kept.class_names == ("a", "b")
        assert kept.description == "4 images in 2 classes: 3 train, 1 val; 3 more left out"

    def test_nothing_to_leave_out(self, tmp_path):
        splits = load_class_folders(fill(tmp_path, a=2, b=2))
        assert splits.without([]) is splits


def test_class_counts_include_absent_classes():
    split = Split("val", ("x", "y"), (2, 2), ("a", "b", "c"))
    assert split.class_counts() == [0, 0, 2]
    assert len(split) == 2
