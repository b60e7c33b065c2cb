"""Shards that lie elsewhere: in another folder, or behind a command, through a small disk."""

import os
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from tar_shards import pipe, splits_of

from sat_vg.backbone_finetuning.data.checks.readable import examine_images
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan
from sat_vg.backbone_finetuning.data.reading.decoding import decode_or_reason, decode_rgb
from sat_vg.backbone_finetuning.data.shards.cache import SOURCE
from sat_vg.backbone_finetuning.data.shards.source import shard_windows
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError

pytest.importorskip("webdataset", reason="shards are written with webdataset, which is not installed")


def test_shards_elsewhere_are_read_where_they_lie(shards, tmp_path, monkeypatch):
    before = splits_of(shards)
    contents = [decode_rgb(path) for path in before.train.paths]
    pipe(tmp_path, monkeypatch, shards)
    monkeypatch.setenv(SOURCE, str(tmp_path / "far away"))
    after = splits_of(shards / "shards.json")
    assert after.train.paths == before.train.paths  # so the data set's fingerprint stays the same
    assert all(torch.equal(decode_rgb(path), one) for path, one in zip(after.train.paths, contents, strict=True))


def room_for(shards: Path, count: int) -> float:
    """``cache_gib`` for so many shards."""
    sizes = sorted((path.stat().st_size for path in shards.glob("*.tar")), reverse=True)
    return sum(sizes[:count]) / 2**30


def test_a_pipe_is_read_shard_by_shard_through_a_small_disk(shards, tmp_path, monkeypatch):
    local = {str(path): path.open().read() for path in splits_of(shards).train.paths}
    gib = room_for(shards, 3)
    _, log = pipe(tmp_path, monkeypatch, shards)
    train = splits_of(shards, shard_window=2, cache_gib=gib).train
    assert not log.exists()  # nothing is fetched before it is needed
    kept = tmp_path / "cache/shards"
    for epoch in range(2):
        before = len(log.read_text().split()) if log.exists() else 0
        for batch in BatchPlan(len(train), 6, 0, shard_windows(train, 2)).batches(epoch):
            for index in batch:
                assert train.paths[index].open().read() == local[train.paths[index]]
                held = sum(path.stat().st_size for path in kept.rglob("shard.tar"))
                assert held <= gib * 2**30
        fetched = log.read_text().split()[before:]
        assert len(fetched) == len(set(fetched)) >= 6  # each once an epoch, the last ones of the epoch before not
    assert len(list(kept.rglob("shard.tar"))) <= 3


def test_what_is_needed_by_many_at_once_is_fetched_once(shards, tmp_path, monkeypatch):
    _, log = pipe(tmp_path, monkeypatch, shards)
    train = splits_of(shards).train
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            code = 1
            try:
                threads = [threading.Thread(target=lambda: [p.open() for p in train.paths]) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert sorted(log.read_text().split()) == [f"train-{number:06d}.tar" for number in range(9)]


def test_a_pipe_that_fails_is_told_with_its_last_words(shards, tmp_path, monkeypatch):
    away, log = pipe(tmp_path, monkeypatch, shards)
    (away / "train-000000.tar").unlink()
    train = splits_of(shards, shard_window=1).train
    with pytest.raises(DataError) as caught:
        examine_images(train.paths, threads=2)
    for part in ("'train-000000.tar'", "exit code 1", "No such file", "3 attempts", SOURCE):
        assert part in str(caught.value), part
    assert str(away) not in str(caught.value).replace("cat: '" + str(away), "")  # no command, which may hold secrets
    with pytest.raises(DataError, match="exit code 1"):
        decode_rgb(train.paths[1])
    assert log.read_text().split().count("train-000000.tar") == 3  # and not for each of its images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-600], "it is cut short"),
        (lambda content: content + b"more", "more bytes than its index says"),
        (lambda content: content[:-1] + b"x", "another SHA-256 than its index says"),
    ],
)
def test_a_pipe_that_gives_something_else(shards, tmp_path, monkeypatch, change, message):
    away, _ = pipe(tmp_path, monkeypatch, shards)
    path = away / "train-000000.tar"
    path.write_bytes(change(path.read_bytes()))
    train = splits_of(shards, shard_window=1).train
    with pytest.raises(DataError, match=message):
        decode_rgb(train.paths[0])
    assert not list((tmp_path / "cache").rglob("shard.tar"))


def test_a_kept_shard_that_rots_is_fetched_anew(shards, tmp_path, monkeypatch):
    _, log = pipe(tmp_path, monkeypatch, shards)
    path = splits_of(shards).train.paths[0]
    decode_rgb(path)
    kept = next((tmp_path / "cache").rglob("shard.tar"))
    content = bytearray(kept.read_bytes())
    content[path.offset + 25] ^= 1
    kept.write_bytes(content)
    assert isinstance(decode_or_reason(path), str)
    decode_rgb(path)
    assert log.read_text().split() == [path.shard.name] * 2


def test_a_check_reads_the_kept_shards_too(shards, tmp_path, monkeypatch, shard_command):
    _, log = pipe(tmp_path, monkeypatch, shards)
    decode_rgb(splits_of(shards).train.paths[0])
    kept = next((tmp_path / "cache").rglob("shard.tar"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert shard_command("--check", shards)[0] == 0
    assert max(Counter(log.read_text().split()).values()) == 2  # the one that had rotted, fetched anew


def test_a_window_that_does_not_fit_is_refused_with_one_that_does(shards, tmp_path, monkeypatch):
    gib = room_for(shards, 4)
    pipe(tmp_path, monkeypatch, shards)
    for window in (0, 5):
        with pytest.raises(ConfigError, match=r"--shard_window 3.*--cache_gib 0\.01"):
            splits_of(shards, shard_window=window, cache_gib=gib)
    splits_of(shards, shard_window=3, cache_gib=gib)


def test_a_source_that_cannot_be_used(shards, monkeypatch):
    monkeypatch.setenv(SOURCE, "s3://bucket/{name}")
    with pytest.raises(ConfigError, match=r"SAT_VG_SHARD_SOURCE.*'s3'.*https.*pipe:COMMAND \{name\}"):
        splits_of(shards)
    monkeypatch.setenv(SOURCE, "pipe:cat shards")
    with pytest.raises(ConfigError, match=r"SAT_VG_SHARD_SOURCE.*\{name\}"):
        splits_of(shards)


def test_without_webdataset_local_shards_are_read_and_the_rest_says_what_to_install(
    shards, class_folders, tmp_path, monkeypatch, shard_command
):
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)  # importing it fails
    decode_rgb(splits_of(shards).train.paths[0])
    assert shard_command("--check", shards)[0] == 0
    code, _, err = shard_command(class_folders, "--out", tmp_path / "others")
    assert code == 2
    assert "pip install 'sat_vg[webdataset]'" in err
    monkeypatch.setenv(SOURCE, "pipe:cat {name}")
    with pytest.raises(ConfigError, match=r"sat_vg\[webdataset\]"):
        splits_of(shards)
