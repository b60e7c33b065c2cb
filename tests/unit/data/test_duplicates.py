"""Copies: found by their pixels, kept on one side of a drawn split, refused across given ones; near ones found."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sat_vg.backbone_finetuning.data.checks import duplicates
from sat_vg.backbone_finetuning.data.checks.duplicates import (
    find_copies,
    find_near,
    keep_together,
    perceptual_hash,
    resolve_copies,
    thumbnail,
)
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.utils.errors import DataError


def splits_of(train, val, test=None, drawn=False):
    """Splits of images that are written ``CLASS/NAME``, such as ``a/1``."""
    names = ("a", "b", "c")

    def split(name, paths):
        paths = sorted(paths)
        return Split(name, tuple(paths), tuple(names.index(path[0]) for path in paths), names)

    return Splits(split("train", train), split("val", val), split("test", test) if test else None, "", drawn)


def contents_of(splits, *groups):
    paths = [p for split in (splits.train, splits.val, splits.test) if split is not None for p in split.paths]
    contents = {path: number for number, path in enumerate(paths)}
    for number, group in enumerate(groups):
        contents.update(dict.fromkeys(group, 1000 + number))
    return contents


class TestSettle:
    def test_nothing_to_settle(self):
        splits = splits_of(["a/1", "b/1"], ["a/2", "b/2"], drawn=True)
        assert resolve_copies(splits, contents_of(splits), "error") == (splits, [])

    def test_given_splits(self):
        splits = splits_of(["a/1", "a/2", "b/1"], ["a/3", "b/3"], ["a/5", "b/5"])
        contents = contents_of(splits, ("a/2", "a/3"), ("b/1", "b/5"))
        with pytest.raises(DataError) as caught:
            resolve_copies(splits, contents, "error")
        message = str(caught.value)
        for part in (
            "1 in train and val, 1 in train and test",
            "'a/2' = 'a/3'",
            "--on_duplicates warn",
            "sat-vg check",
        ):
            assert part in message
        warned, (note,) = resolve_copies(splits, contents, "warn")
        assert warned == splits
        assert note.startswith("warning: ")
        assert resolve_copies(splits, contents, "ignore") == (splits, [])

    def test_drawn_split_keeps_copies_together(self):
        splits = splits_of(["a/1", "a/4", "b/1", "b/4"], ["a/2", "a/3", "b/3"], drawn=True)
        contents = contents_of(splits, ("a/1", "a/2"), ("a/3", "a/4"))
        settled, (note,) = resolve_copies(splits, contents, "error")
        assert settled.train.paths == ("a/1", "a/2", "b/1", "b/4")
        assert settled.val.paths == ("a/3", "a/4", "b/3")
        assert settled.val.labels == (0, 0, 1)
        assert settled.val.name == "val"
        assert "2 images changed sides" in note
        assert resolve_copies(splits, contents, "ignore") == (splits, [])

    def test_a_test_folder_is_never_settled_by_moving(self):
        splits = splits_of(["a/1", "b/1"], ["a/2", "b/2"], ["a/9"], drawn=True)
        with pytest.raises(DataError, match="1 in train and test"):
            resolve_copies(splits, contents_of(splits, ("a/1", "a/9")), "error")

    def test_conflicting_labels_are_told(self):
        splits = splits_of(["a/1", "b/1"], ["a/2", "b/2"])
        settled, (note,) = resolve_copies(splits, contents_of(splits, ("a/1", "b/1")), "error")
        assert settled == splits
        assert note.startswith("warning: 1 image occurs with different labels:\n")

    def test_nothing_left_for_val(self):
        splits = splits_of(["a/1", "b/1"], ["a/2", "b/2"], drawn=True)
        with pytest.raises(DataError, match="no image is left for val"):
            resolve_copies(splits, contents_of(splits, ("a/1", "a/2"), ("b/1", "b/2")), "error")


@given(
    sizes=st.lists(st.integers(2, 12), min_size=2, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    kinds=st.integers(1, 12),
)
def test_any_copies_are_kept_together_and_nothing_is_lost(sizes, seed, kinds):
    generator = np.random.default_rng(seed)
    paths = [f"{'abc'[label]}/{index:02}" for label, size in enumerate(sizes) for index in range(size)]
    contents = {path: int(generator.integers(kinds)) for path in paths}
    in_val = {path: generator.random() < 0.3 and not path.endswith("00") for path in paths}
    splits = splits_of([p for p in paths if not in_val[p]], [p for p in paths if in_val[p]], drawn=True)
    try:
        kept = keep_together(splits, find_copies(splits, contents))
    except DataError:
        return
    assert sorted(kept.train.paths + kept.val.paths) == paths
    assert not {contents[p] for p in kept.train.paths} & {contents[p] for p in kept.val.paths}
    assert list(kept.train.paths) == sorted(kept.train.paths)
    across = {contents[p] for p in splits.train.paths} & {contents[p] for p in splits.val.paths}
    untouched = [path for path in paths if contents[path] not in across]
    assert all((path in kept.val.paths) == in_val[path] for path in untouched)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 9))
def test_no_class_vanishes_from_train(seed, size):
    generator = np.random.default_rng(seed)
    paths = [f"{label}/{index}" for label in "ab" for index in range(size)]
    contents = {path: ord(path[0]) * 100 + int(generator.integers(3)) for path in paths}  # copies within a class
    chosen = {path for path in paths if generator.random() < 0.5} - {"a/0", "b/0"}
    splits = splits_of([p for p in paths if p not in chosen], chosen, drawn=True)
    try:
        kept = keep_together(splits, find_copies(splits, contents))
    except DataError:
        return
    assert all(kept.train.class_counts()[:2])


def picture(seed, size=96):
    """A smooth picture with structure, uint8 ``[H, W, 3]``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class TestNear:
    def test_recompressed_and_resized_copies_are_found_among_others(self):
        images = [picture(seed) for seed in range(60)]
        packed = io.BytesIO()
        images[7].save(packed, "jpeg", quality=80)
        images += [Image.open(packed).convert("RGB"), images[11].resize((72, 72), Image.Resampling.BICUBIC)]
        small = np.stack([thumbnail(as_tensor(image)) for image in images])
        hashes = np.stack([perceptual_hash(one) for one in small])
        assert find_near(hashes, small) == [(7, 60), (11, 61)]
        skip = np.arange(len(images)) == 60
        assert find_near(hashes, small, skip) == [(11, 61)]

    @given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 60))
    def test_the_search_misses_no_pair(self, seed, count):
        generator = np.random.default_rng(seed)
        hashes = generator.integers(0, 256, (4, 16), dtype=np.uint8)[generator.integers(0, 4, count)]
        for row in hashes:  # up to 10 bits are flipped
            for bit in generator.integers(0, 128, int(generator.integers(0, 11))):
                row[bit // 8] ^= 1 << int(bit % 8)
        small = np.zeros((count, 9, 9), np.uint8)
        bits = np.unpackbits(hashes, axis=1)
        expected = [
            (i, j)
            for i in range(count)
            for j in range(i + 1, count)
            if (bits[i] != bits[j]).sum() <= duplicates.NEAR_BITS
        ]
        assert find_near(hashes, small) == expected

    def test_a_crowd_of_equal_hashes_takes_no_quadratic_time(self, monkeypatch):
        compared, counts = [], duplicates._BIT_COUNT

        class Counting:
            def __getitem__(self, bits):
                compared.append(len(bits))
                return counts[bits]

        monkeypatch.setattr(duplicates, "_BIT_COUNT", Counting())
        count = 3_000
        small = np.repeat(np.arange(count) % 251, 81).reshape(count, 9, 9).astype(np.uint8)
        find_near(np.zeros((count, 16), np.uint8), small)
        assert 8 * count < sum(compared) < 8 * count * 100

    @pytest.mark.parametrize("size", [(1, 1), (1, 500), (8, 9), (9, 9), (3000, 20), (64, 64)])
    def test_thumbnails_of_any_size(self, size):
        assert (thumbnail(torch.full((3, *size), 200, dtype=torch.uint8)) == 200).all()
