"""The check before training: it finds what is bad, remembers what is good, and trusts no damaged record."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sat_vg.backbone_finetuning.data.checks import readable as checks
from sat_vg.backbone_finetuning.data.checks.readable import (
    BadImage,
    examine_images,
    require_readable,
    write_left_out,
)
from sat_vg.backbone_finetuning.data.reading import threads as reading_threads
from sat_vg.backbone_finetuning.data.reading.decoding import RgbDecoder
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.utils.errors import DataError, WriteError

# Whatever it is asked to decode is bad: what passes was not decoded.


class Refuses(RgbDecoder):
    def examine(self, path):
        return "it was not to be decoded"


REFUSES = Refuses()


@pytest.fixture
def root(tmp_path):
    """Two classes of 20 readable images."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    for index, pixels in enumerate(noise):
        folder = tmp_path / "images" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:02}.jpg")
    return tmp_path / "images"


@pytest.fixture
def paths(root):
    return sorted(str(path) for path in root.rglob("*.jpg"))


def find_unreadable(paths, **options):
    return examine_images(paths, **options).bad


def cut(path, length=300):
    """Cut a file short but keep its time of change."""
    before = Path(path).stat().st_mtime_ns
    with Path(path).open("r+b") as file:
        file.truncate(length)
    os.utime(path, ns=(before, before))


def damage_unseen(path):
    """Make a file unreadable that keeps its size and time of change, as ``cp -p`` of another one would."""
    before = Path(path).stat()
    with Path(path).open("r+b") as file:
        file.write(bytes(before.st_size))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))


class TestFindUnreadable:
    def test_all_good(self, paths):
        assert find_unreadable(paths) == []
        assert find_unreadable([]) == []

    @pytest.mark.parametrize("threads", [1, 3, None])
    def test_in_order_with_reasons(self, paths, threads, monkeypatch):
        monkeypatch.setattr(reading_threads, "_BATCH", 3)
        cut(paths[31])
        Path(paths[7]).write_bytes(b"")
        asked = [*paths[::-1], paths[0] + ".gone"]
        bad = find_unreadable(asked, threads=threads)
        assert [image.path for image in bad] == [paths[31], paths[7], paths[0] + ".gone"]
        assert "cut short" in bad[0].reason
        assert bad[1] == BadImage(paths[7], "the file is empty (0 bytes)")
        assert "no such file" in bad[2].reason
        assert not any(image.path in image.reason for image in bad)

    def test_few_batches_wait_at_a_time(self, paths):
        class Counting:
            taken = 0

            def __iter__(self):
                for path in paths * 50:
                    self.taken += 1
                    yield path

        counting = Counting()
        lengths = reading_threads.run_in_order(counting, len, threads=2)
        assert next(lengths) == len(paths[0])
        assert counting.taken <= 4 * reading_threads._BATCH
        lengths.close()

    def test_silent_without_terminal(self, paths, capfd):
        find_unreadable(paths)
        assert capfd.readouterr() == ("", "")

    def test_no_thread_is_left(self, paths):
        find_unreadable(paths, threads=4)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("check-images")]


class TestRecord:
    def test_second_check_passes_over_known_images(self, paths, tmp_path):
        record = tmp_path / "cache" / "readable"
        assert find_unreadable(paths[:30], record=record) == []
        assert [image.path for image in find_unreadable(paths, record=record, decoder=REFUSES)] == paths[30:]

    @pytest.mark.parametrize("what", ["size", "time", "content alone", "another file"])
    def test_changed_image_is_decoded_again(self, paths, tmp_path, what):
        record = tmp_path / "record"
        find_unreadable(paths, record=record)
        if what == "size":
            cut(paths[4])
        elif what == "another file":
            other = shutil.copy2(paths[4], tmp_path / "other")
            damage_unseen(other)
            Path(other).replace(paths[4])
        else:
            damage_unseen(paths[4])
            if what == "time":
                os.utime(paths[4], ns=(1, 1))
        assert [image.path for image in find_unreadable(paths, record=record)] == [paths[4]]

    def test_bad_image_is_bad_again(self, paths, tmp_path):
        cut(paths[2])
        first = find_unreadable(paths, record=tmp_path / "record")
        assert [image.path for image in first] == [paths[2]]
        assert find_unreadable(paths, record=tmp_path / "record") == first

    def test_relative_and_absolute_paths_are_one(self, paths, tmp_path, monkeypatch):
        record = tmp_path / "record"
        find_unreadable(paths, record=record)
        monkeypatch.chdir(tmp_path)
        assert find_unreadable([os.path.relpath(paths[0])], record=record, decoder=REFUSES) == []

    def test_other_images_stay_known(self, paths, tmp_path):
        record = tmp_path / "record"
        find_unreadable(paths[:20], record=record)
        find_unreadable(paths[20:], record=record)
        assert find_unreadable(paths, record=record, decoder=REFUSES) == []

    @pytest.mark.parametrize(
        "kind", ["empty", "text", "cut", "altered", "locked", "pickle", "array", "other", "version"]
    )
    def test_damaged_or_foreign_record_is_rewritten(self, paths, tmp_path, kind):
        record = tmp_path / "record"
        find_unreadable(paths, record=record)
        whole = record.read_bytes()
        if kind in ("pickle", "array"):
            with record.open("wb") as file:
                np.save(file, np.array([{}] if kind == "pickle" else [1.0]), allow_pickle=True)
        elif kind == "other":
            with record.open("wb") as file:
                np.savez(file, format=np.array("sat_vg"), keys=np.arange(3))
        elif kind == "version":
            with np.load(record) as content:
                columns = dict(content)
            with record.open("wb") as file:
                np.savez(file, **(columns | {"format": np.array(str(columns["format"]) + ".1")}))
        else:
            middle = len(whole) // 2
            place = whole.index(b"NUMPY", middle) + 100  # in an array: bytes of the zip's own dates would not matter
            altered = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
            flag = whole.index(b"PK\x01\x02") + 8  # of an entry in the zip's directory: it is encrypted
            locked = whole[:flag] + bytes([whole[flag] ^ 1]) + whole[flag + 1 :]
            contents = {
                "empty": b"",
                "text": b"[1, 2]\n",
                "cut": whole[:middle],
                "altered": altered,
                "locked": locked,
            }
            record.write_bytes(contents[kind])
        damage_unseen(paths[0])
        assert [image.path for image in find_unreadable(paths, record=record)] == [paths[0]]
        assert set(checks._read_record(record)) == {checks._key(path) for path in paths[1:]}

    def test_record_that_cannot_be_written(self, paths, tmp_path):
        (tmp_path / "file").touch()
        assert find_unreadable(paths, record=tmp_path / "file" / "record") == []
        assert find_unreadable(paths, record=tmp_path) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "images"]

    def test_interrupted_check_keeps_what_it_has(self, paths, tmp_path, monkeypatch):
        class Interrupting(list):
            def __iter__(self):
                yield from super().__iter__()
                raise KeyboardInterrupt

        monkeypatch.setattr(reading_threads, "_BATCH", 2)
        with pytest.raises(KeyboardInterrupt):
            find_unreadable(Interrupting(paths), record=tmp_path / "record", threads=1)
        assert checks._key(paths[0]) in checks._read_record(tmp_path / "record")

    def test_fingerprints_are_remembered(self, paths, tmp_path):
        record = tmp_path / "cache" / "record"
        first = examine_images(paths, record=record)
        assert examine_images(paths, record=record, decoder=REFUSES) == first
        assert first.sizes == dict.fromkeys(paths, (16, 16))
        assert len(set(first.contents.values())) == len(paths)
        assert record.stat().st_mode & 0o777 == 0o600
        assert record.parent.stat().st_mode & 0o777 == 0o700

    def test_a_look_passes_over_nothing_and_is_remembered(self, paths, tmp_path):
        record = tmp_path / "record"
        damaged = paths[0]
        find_unreadable(paths, record=record)
        damage_unseen(damaged)
        examined = examine_images(paths, record=record, measure=lambda image: tuple(image.shape))
        assert examined.stats == dict.fromkeys(paths[1:], (3, 16, 16))
        assert [bad.path for bad in examined.bad] == [damaged]


def test_fingerprint_is_of_the_pixels(paths, tmp_path):
    with Image.open(paths[0]) as image:
        image.save(tmp_path / "a.png")
        image.save(tmp_path / "a.bmp")
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png")
    Image.new("RGB", (4, 2)).save(tmp_path / "wide.png")
    Image.new("RGB", (2, 4)).save(tmp_path / "high.png")
    copies = [paths[0], *map(str, sorted(tmp_path.glob("a.*")))]
    assert len(set(examine_images(copies).contents.values())) == 1
    others = [paths[0], *map(str, sorted(tmp_path.glob("*.png")))]
    assert len(set(examine_images(others).contents.values())) == 4  # a.png is the first


def test_list_of_what_was_left_out(tmp_path):
    write_left_out(tmp_path / "logs/skipped.txt", [BadImage("a/\x1b[31m\n\udcff.jpg", "the file is empty\tor so")])
    assert (tmp_path / "logs/skipped.txt").read_text() == "a/\\x1b[31m\\n\\udcff.jpg\tthe file is empty\\tor so\n"
    write_left_out(tmp_path / "logs/skipped.txt", [])
    assert not list((tmp_path / "logs").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"):
        write_left_out(tmp_path / "file/skipped.txt", [BadImage("a", "b")])


class TestRequireReadable:
    def test_all_good(self, root):
        splits = load_class_folders(root)
        readable = require_readable(splits, "error")
        assert readable[:2] == (splits, [])
        assert sorted(readable.contents) == sorted(splits.train.paths + splits.val.paths)

    def test_error_lists_ten(self, root, paths):
        for path in paths[:12]:
            cut(path)
        with pytest.raises(DataError) as caught:
            require_readable(load_class_folders(root), "error")
        message = str(caught.value)
        assert message.startswith("12 of 40 images cannot be read:\n")
        assert message.count("cut short") == 10
        assert "and 2 more" in message
        assert "Mend or remove them, or leave them out with --on_bad_image skip" in message

    def test_skip(self, root):
        before = load_class_folders(root)
        bad = [before.train.paths[3], before.val.paths[0]]
        for path in bad:
            cut(path)
        splits, found, contents, sizes, _ = require_readable(before, "skip", max_bad_fraction=0.05)
        assert len(contents) == 38
        assert sizes == dict.fromkeys(contents, (16, 16))
        assert [image.path for image in found] == bad
        assert splits == before.without(bad)
        assert len(splits.train) == len(before.train) - 1

    def test_test_images_are_checked_too(self, root, tmp_path):
        for name in ("train", "val", "test"):
            (tmp_path / "set" / name).mkdir(parents=True)
            for label in "ab":
                (tmp_path / "set" / name / label).symlink_to(root / label)
        splits = load_class_folders(tmp_path / "set")
        cut(splits.test.paths[0])
        kept, bad, *_ = require_readable(splits, "skip", max_bad_fraction=0.1)
        assert len(bad) == 3  # the same file in each split
        assert len(kept.test) == len(splits.test) - 1

    @pytest.mark.parametrize("what", ["val", "class"])
    def test_skip_that_empties(self, root, what):
        splits = load_class_folders(root)
        train = [path for path, label in zip(splits.train.paths, splits.train.labels, strict=True) if label == 1]
        for path in splits.val.paths if what == "val" else train:
            cut(path)
        words = "leave nothing of val" if what == "val" else "leave nothing of train's classes 'b'"
        with pytest.raises(DataError, match=words):
            require_readable(splits, "skip", max_bad_fraction=1)

    def test_skip_beyond_the_limit(self, root, paths):
        for path in paths[:3]:
            cut(path)
        splits = load_class_folders(root)
        with pytest.raises(DataError) as caught:
            require_readable(splits, "skip")
        message = str(caught.value)
        assert message.startswith("3 of 40 images cannot be read, 7.5 % of them, and at most 1 % may be left out:\n")
        assert "--on_bad_image skip:0.075" in message
        assert len(require_readable(splits, "skip", max_bad_fraction=0.075).left_out) == 3
