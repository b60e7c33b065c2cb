"""The drawn split, over many data sets: complete, disjoint, stratified, stable whatever the file system's order."""

import os
import random
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders

# Names with a meaning in folders, shells, terminals or encodings.
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: (
        not name.startswith(".") and len(os.fsencode(name)) < 100 and name not in ("__MACOSX", "train", "val")
    )
)
DATA_SETS = st.dictionaries(NAMES, st.integers(1, 25), min_size=2, max_size=4).filter(
    lambda d: max(d.values()) > 1 and len(set(map(same_form, d))) == len(d)
)
CHANGED_BY_NFC = {"a": 5, "\uf900": 5, "e\u0301": 5}  # folders whose names are not those of their classes


@contextmanager
def shuffled_listings(seed):
    """A file system that lists folders in another order."""
    real = os.scandir

    @contextmanager
    def scandir(folder):
        with real(folder) as entries:
            seen = sorted(entries, key=lambda entry: entry.name)
        random.Random(seed).shuffle(seen)
        yield iter(seen)

    with mock.patch("sat_vg.backbone_finetuning.data.sources.class_folders.os.scandir", scandir):
        yield


@settings(max_examples=60, deadline=None)
@example(classes=CHANGED_BY_NFC, fraction=0.2, seed=0, orders=1)
@given(classes=DATA_SETS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**64), orders=st.integers(0, 99))
def test_split(classes, fraction, seed, orders):
    with tempfile.TemporaryDirectory() as folder:
        for name, count in classes.items():
            (Path(folder) / name).mkdir()
            for index in range(count):
                (Path(folder) / name / f"{index}.png").touch()
        splits = load_class_folders(Path(folder), val_fraction=fraction, seed=seed)
        with shuffled_listings(orders):
            assert load_class_folders(Path(folder), val_fraction=fraction, seed=seed) == splits
        everything = {str(path) for path in Path(folder).glob("*/*.png")}
    train, val = set(splits.train.paths), set(splits.val.paths)
    assert train | val == everything
    assert not train & val
    assert len(splits.train) + len(splits.val) == len(everything)
    counts = {same_form(name): count for name, count in classes.items()}
    assert splits.class_names == tuple(sorted(counts))
    for name, in_train, in_val in zip(
        splits.class_names, splits.train.class_counts(), splits.val.class_counts(), strict=True
    ):
        assert in_train + in_val == counts[name]
        assert in_train >= 1
        assert (in_val >= 1) == (counts[name] > 1)
        assert abs(in_val - fraction * counts[name]) <= 1
    for split in (splits.train, splits.val):
        assert all(
            same_form(Path(p).parent.name) == split.class_names[n]
            for p, n in zip(split.paths, split.labels, strict=True)
        )


@settings(max_examples=25, deadline=None)
@example(classes=CHANGED_BY_NFC, seed=0)
@given(classes=DATA_SETS, seed=st.integers(0, 2**32))
def test_classes_are_split_apart_from_one_another(classes, seed):
    """Images added to the last class change no other class's split."""
    with tempfile.TemporaryDirectory() as folder:
        for name, count in classes.items():
            (Path(folder) / name).mkdir()
            for index in range(count):
                (Path(folder) / name / f"{index}.png").touch()
        before = load_class_folders(Path(folder), seed=seed)
        last = max(classes, key=same_form)  # the folder keeps its name; that of the class is its composed form
        (Path(folder) / last / "zz.png").touch()
        after = load_class_folders(Path(folder), seed=seed)
    kept = len(before.class_names) - 1

    def others(split):
        return [p for p, label in zip(split.paths, split.labels, strict=True) if label < kept]

    assert others(before.train) == others(after.train)
    assert others(before.val) == others(after.val)
