"""A bounded folder of computed things, used by several processes at once, some of which are killed."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import small_disk

from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache, NoRoom, bytes_to_spare

A, B, C, D = (letter * 32 for letter in "abcd")

BUILDS = """
import sys, time
from pathlib import Path
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
folder, key, num_bytes, start, hold = sys.argv[1:]
num_bytes, cache = int(num_bytes), BoundedCache(Path(folder), 10_000)
while start != "-" and not Path(start).exists():
    time.sleep(0.001)
with cache.building(key, num_bytes) as entry:
    if isinstance(entry, Path):
        (entry / "content").write_bytes(bytes(num_bytes))
        print("building", flush=True)
        time.sleep(float(hold))
    else:
        print("no room", flush=True)
print("done", flush=True)
"""


def start_building(folder, key, num_bytes, *, start="-", hold=0.0):
    """Another process that builds an entry."""
    command = [sys.executable, "-c", BUILDS, folder, key, str(num_bytes), start, str(hold)]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def build(cache, key, num_bytes, used=None):
    with cache.building(key, num_bytes) as folder:
        assert not isinstance(folder, NoRoom), folder
        (folder / "content").write_bytes(bytes(num_bytes))
    if used is not None:
        os.utime(cache.folder / key, (used, used))


@pytest.fixture
def cache(tmp_path):
    return BoundedCache(tmp_path / "cache", 10_000)


def names(cache):
    return {path.name for path in cache.folder.iterdir()} - {".lock"}


def test_an_entry_is_there_once_it_is_whole(cache):
    assert cache.find(A) is None
    assert not cache.folder.exists()
    with cache.building(A, 8) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "content").write_bytes(b"12345678")
        assert cache.find(A) is None
        assert cache.num_bytes() == 0
    assert (cache.find(A) / "inner" / "content").read_bytes() == b"12345678"
    assert sorted(path.name for path in cache.find(A).iterdir()) == ["inner"]
    assert (cache.num_bytes(), names(cache)) == (8, {A})
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.remove(A)
    cache.remove(A)
    assert cache.find(A) is None
    assert not names(cache)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_stays_of_what_failed(cache, error):
    with pytest.raises(error), cache.building(A, 8) as folder:
        (folder / "content").write_bytes(b"1234")
        raise error
    assert cache.find(A) is None
    assert not names(cache)


def test_a_key_is_a_hash(cache):
    for key in ("../../etc", "A" * 32, "", "a" * 8):
        with pytest.raises(AssertionError):
            cache.find(key)


def test_what_was_used_least_recently_goes_first(cache):
    for used, key in enumerate((A, B, C)):
        build(cache, key, 3000, used=1000 + used)
    assert cache.find(A) is not None  # used now, so B is the oldest
    build(cache, D, 4000)
    assert names(cache) == {A, C, D}
    assert cache.num_bytes() == 10_000
    build(cache, B, 1)
    assert names(cache) == {A, D, B}


def test_what_can_not_fit_removes_nothing(cache):
    build(cache, A, 9000)
    with cache.building(B, 10_001) as refused:
        assert refused == NoRoom(10_001, 10_000, "limit")
    large = BoundedCache(cache.folder, 2**60)
    with large.building(B, 2**59) as refused:
        assert (refused.needed, refused.bound) == (2**59, "disk")
        assert 9000 <= refused.free < 2**50
    assert names(cache) == {A}


@pytest.mark.parametrize(
    ("free", "total", "spare"),
    [
        (100 * 2**30, 500 * 2**30, 98 * 2**30),
        (4 * 2**30, 10 * 2**30, 3 * 2**30),  # the reserve is a tenth of a small disk
        (3 * 2**30, 500 * 2**30, 2**30),
        (2**30, 500 * 2**30, 2**30 // 100),  # less than the reserve is free: what is small is let in
        (2 * 2**30, 500 * 2**30, 2 * 2**30 // 100),
        (0, 500 * 2**30, 0),
    ],
)
def test_what_a_disk_has_to_spare(free, total, spare):
    assert bytes_to_spare(free, total) == spare


def test_on_a_disk_that_is_nearly_full_small_entries_are_built(tmp_path):
    """A real one of 8 MiB, so with a reserve of 0.8 MiB."""
    with small_disk(tmp_path / "disk", 8):
        cache = BoundedCache(tmp_path / "disk" / "cache", 2**30)
        build(cache, A, 5 * 2**20)
        (tmp_path / "disk" / "of_others").write_bytes(bytes(int(2.4 * 2**20)))
        free = shutil.disk_usage(tmp_path / "disk").free
        assert 2**19 < free < 0.8 * 2**20
        build(cache, B, free // 200)
        assert names(cache) == {A, B}
        with cache.building(C, 6 * 2**20) as refused:  # more than there is with everything else gone
            assert (refused.needed, refused.bound) == (6 * 2**20, "disk")
            assert 4 * 2**20 < refused.free < 5 * 2**20 + free
        assert names(cache) == {A, B}
        build(cache, C, free // 10)  # no small one: what was used least recently makes room for it
        assert names(cache) == {B, C}


def test_what_others_are_building_counts(cache):
    with cache.building(A, 6000) as folder:
        with cache.building(B, 5000) as refused:
            assert refused == NoRoom(5000, 4000, "limit")
        (folder / "content").write_bytes(bytes(6000))
    build(cache, B, 5000)
    assert names(cache) == {B}


def test_what_is_not_of_the_cache_is_left_alone(cache, tmp_path):
    build(cache, A, 6000)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(bytes(10_000))
    (cache.folder / "notes").mkdir()
    (cache.folder / "notes" / "file").write_bytes(bytes(10_000))
    (cache.folder / ".notes.unfinished").mkdir()
    (cache.folder / B).symlink_to(tmp_path / "elsewhere")
    build(cache, C, 6000)
    assert names(cache) == {C, B, "notes", ".notes.unfinished"}
    assert (tmp_path / "elsewhere" / "file").exists()


def test_several_processes_build_the_same_entry_at_once(cache, tmp_path):
    start = tmp_path / "start"
    processes = [start_building(cache.folder, A, 3000, start=start, hold=0.05) for _ in range(3)]
    time.sleep(0.3)
    start.touch()
    for process in processes:
        assert process.communicate(timeout=60)[0] == "building\ndone\n"
        assert process.returncode == 0
    assert names(cache) == {A}
    assert (cache.find(A) / "content").stat().st_size == 3000


def test_several_processes_keep_the_bound_together(cache, tmp_path):
    start = tmp_path / "start"
    processes = [start_building(cache.folder, f"{n:032x}", 3000, start=start, hold=0.1) for n in range(5)]
    time.sleep(0.3)
    start.touch()
    said = [process.communicate(timeout=60)[0].splitlines()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert said.count("building") >= 3
    assert cache.num_bytes() <= 10_000
    assert not [name for name in names(cache) if name.startswith(".")]


def test_a_killed_builder_leaves_nothing_that_counts(cache):
    process = start_building(cache.folder, A, 6000, hold=60)
    assert process.stdout.readline() == "building\n"
    with cache.building(B, 6000) as refused:  # it lives, and what it builds is not touched
        assert isinstance(refused, NoRoom)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(names(cache)) == 1  # it could not tidy up
    assert cache.find(A) is None
    assert cache.num_bytes() == 0
    build(cache, B, 6000)
    assert names(cache) == {B}


def test_an_open_file_outlives_its_entry(cache):
    build(cache, A, 6000)
    with (cache.find(A) / "content").open("rb") as file:
        build(cache, B, 6000)
        assert cache.find(A) is None
        assert file.read() == bytes(6000)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    cache = BoundedCache(tmp_path / "file" / "cache", 100)
    assert cache.find(A) is None
    with pytest.raises(OSError), cache.building(A, 1):
        pytest.fail("it is a file")


def test_a_folder_that_cannot_be_looked_into_holds_nothing(tmp_path):
    """Such as a cache folder of another user, or one whose name is too long."""
    cache = BoundedCache(tmp_path / ("x" * 300), 10)
    assert cache.find(A) is None
    assert cache.load(A, lambda folder: 1) is None
