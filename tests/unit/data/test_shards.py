"""Shards: what is in them, what is read out of them, and what is refused."""

import json
import pickle
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import COLOURS, write_image
from tar_shards import pipe, splits_of
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.readable import examine_images
from sat_vg.backbone_finetuning.data.loading.loaders import ImageDataset
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan
from sat_vg.backbone_finetuning.data.reading.decoding import decode_or_reason, decode_rgb
from sat_vg.backbone_finetuning.data.shards.cache import SOURCE, ShardPath
from sat_vg.backbone_finetuning.data.shards.source import shard_windows
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.seeding import torch_generator

pytest.importorskip("webdataset", reason="shards are written with webdataset, which is not installed")


def altered(shards: Path, change) -> None:
    """The index with something changed in it."""
    content = json.loads((shards / "shards.json").read_text())
    change(content)
    (shards / "shards.json").write_text(json.dumps(content))


def test_the_images_are_those_of_the_folders_in_the_same_order(shards, class_folders):
    ours, theirs = splits_of(shards), load_class_folders(class_folders)
    assert ours.class_names == theirs.class_names
    assert "39" not in ours.description
    assert "36 images in 3 classes (12 shards): 27 train, 9 val" in ours.description
    for one, other in zip(ours.parts, theirs.parts, strict=True):
        assert one.labels == other.labels
        for path, file in zip(one.paths, other.paths, strict=True):
            assert isinstance(path, ShardPath)
            assert path.open().read() == Path(file).read_bytes()
            assert Path(file).stem in path
            assert path.endswith(Path(file).suffix)
            assert torch.equal(decode_rgb(path), decode_rgb(file))


def test_classes_are_mixed_in_every_shard(shards):
    train = splits_of(shards).train
    classes: dict[str, set] = {}
    for path, label in zip(train.paths, train.labels, strict=True):
        classes.setdefault(path.shard.name, set()).add(label)
    assert sum(len(few) > 1 for few in classes.values()) >= 6


def test_every_epoch_reads_the_same_images_as_from_folders(shards, class_folders):
    ours, theirs = splits_of(shards, shard_window=2).train, load_class_folders(class_folders).train
    orders = []
    for epoch in range(3):
        windowed = BatchPlan(len(ours), 6, 0, shard_windows(ours, 2)).batches(epoch)
        plain = BatchPlan(len(theirs), 6, 0).batches(epoch)
        read = [ours.paths[index].open().read() for batch in windowed for index in batch]
        assert Counter(read) == Counter(Path(theirs.paths[i]).read_bytes() for batch in plain for i in batch)
        orders.append(windowed)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == BatchPlan(len(ours), 6, 0, shard_windows(ours, 2)).batches(1)


@pytest.mark.parametrize("window", [1, 2, 4, 9, 50])
def test_a_window_needs_few_shards_at_a_time(shards, window):
    train = splits_of(shards, shard_window=window).train
    order = shard_windows(train, window)(len(train), torch_generator(5)).tolist()
    assert sorted(order) == list(range(27))
    seen = [train.paths[index].shard.name for index in order]
    for start in range(0, 27, 3 * window):
        assert len(set(seen[start : start + 3 * window])) == min(window, 9 - start // 3)
    if window > 1:  # within a window images of several shards alternate
        assert seen != sorted(seen, key=seen.index)


def test_with_a_window_the_images_come_as_they_lie(shards):
    for split in splits_of(shards, shard_window=2).parts:
        places = [(path.shard.name, path.offset) for path in split.paths]
        assert places == sorted(places)
        assert len(set(places)) == len(split)


def test_a_path_is_a_text_that_can_be_sent_anywhere(shards):
    path = splits_of(shards).train.paths[3]
    twin = pickle.loads(pickle.dumps([path]))[0]
    assert twin == path == str(path)
    assert hash(twin) == hash(str(path))
    assert torch.equal(decode_rgb(twin), decode_rgb(path))
    found = []
    thread = threading.Thread(target=lambda: found.append(decode_rgb(path)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], decode_rgb(path))
    assert isinstance(decode_or_reason(str(path)), str)  # what has lost its place is not read as something else


@pytest.mark.slow  # each worker loads torch anew
def test_workers_that_are_spawned_read_the_shards(shards, tmp_path, monkeypatch):
    pipe(tmp_path, monkeypatch, shards)
    dataset = ImageDataset(splits_of(shards).train, Resize((8, 8)), seed=0)
    keys = [(0, index) for index in range(len(dataset))]
    loader = DataLoader(dataset, sampler=keys, batch_size=9, num_workers=2, multiprocessing_context="spawn")
    read = torch.cat([images for images, _, _ in loader])
    monkeypatch.setenv(SOURCE, str(tmp_path / "far away"))
    assert torch.equal(
        read, torch.stack([Resize((8, 8))(decode_rgb(path)) for path in splits_of(shards).train.paths])
    )
    assert len(read) == 27


def test_webdataset_reads_the_shards(shards, class_folders):
    import webdataset

    train = load_class_folders(class_folders).train
    names = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    read = []
    for sample in webdataset.WebDataset(names, shardshuffle=False):
        image = next(sample[ending] for ending in ("jpg", "png") if ending in sample)
        read.append((image, int(sample["cls"])))
        assert "." not in sample["__key__"]
    expected = [(Path(path).read_bytes(), label) for path, label in zip(train.paths, train.labels, strict=True)]
    assert Counter(read) == Counter(expected)


def test_other_limits_and_seeds_give_the_same_images(class_folders, shard_command, tmp_path):
    whole = splits_of(class_folders)
    for number, flags in enumerate((("--shard_mib", "0.02"), ("--images_per_shard", "5", "--seed", "3"), ())):
        folder = tmp_path / f"shards_{number}"
        assert shard_command(class_folders, "--out", folder, *flags)[0] == 0
        assert len(list(folder.glob("train-*.tar"))) == {0: len(list(folder.glob("train-*.tar"))), 1: 6, 2: 1}[number]
        if number == 0:
            sizes = [path.stat().st_size for path in folder.glob("train-*.tar")]
            assert 2 < len(sizes) < 27
            assert max(sizes) <= 0.02 * 2**20 + 10240  # tar rounds up to 20 blocks
        assert [path.open().read() for path in splits_of(folder).train.paths] == [
            Path(path).read_bytes() for path in whole.train.paths
        ]


def test_hostile_names_of_classes_and_files(tmp_path, shard_command):
    names = ["sea. and\nsand", "森林 forest", "a'b\"$(touch pwned)`;&", "<script>", "dots..", "x" * 200]
    for number, name in enumerate(names):
        for count in range(5):
            write_image(
                tmp_path / "images" / name / f"é {count}.tar.gz .jpg", (40 * number, 90, 90), 9 * number + count
            )
    code, _, err = shard_command(tmp_path / "images", "--out", tmp_path / "shards", "--images_per_shard", 4)
    assert code == 0, err
    splits = splits_of(tmp_path / "shards")
    assert splits.class_names == tuple(sorted(names))
    theirs = load_class_folders(tmp_path / "images")
    assert [path.open().read() for path in splits.val.paths] == [Path(p).read_bytes() for p in theirs.val.paths]
    assert any("森林_forest" in path for path in splits.train.paths)
    for path in (tmp_path / "shards").glob("*.tar"):
        with tarfile.open(path) as archive:
            for name in archive.getnames():
                assert name.count(".") == 1, name
                assert "/" not in name
                assert len(name.encode()) < 100
    import webdataset

    tars = [str(path) for path in (tmp_path / "shards").glob("*.tar")]
    assert len(list(webdataset.WebDataset(tars, shardshuffle=False))) == 30


def test_a_shard_that_is_cut_short_is_named(shards):
    path = shards / "train-000003.tar"
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(DataError, match=r"'train-000003.tar' has \d+ bytes, its index says \d+"):
        splits_of(shards)


def test_all_missing_shards_are_named_with_the_way_out(shards):
    for number in (2, 5):
        (shards / f"train-{number:06d}.tar").unlink()
    with pytest.raises(DataError, match=r"(?s)2 of 12 shards.*train-000002.*train-000005.*SAT_VG_SHARD_SOURCE"):
        splits_of(shards)


def test_an_altered_image_is_no_image(shards):
    path = next(path for path in splits_of(shards).train.paths if path.endswith(".jpg"))
    file = shards / path.shard.name
    content = bytearray(file.read_bytes())
    content[path.offset + path.size - 40] ^= 1  # still a JPEG
    file.write_bytes(content)
    assert "not those that shards.json knows" in str(decode_or_reason(path))
    with pytest.raises(DataError, match=r"(?s)000.*\.jpg.*sat-vg shard --check"):
        decode_rgb(path)


def test_shards_of_another_writing_do_not_pass_for_these(tmp_path, shard_command):
    # Pictures that take the same bytes, so that all shards of both writings have the same sizes.
    for number in range(12):
        colour = list(COLOURS)[number % 2]
        write_image(tmp_path / "images" / colour / f"{number:02d}.bmp", COLOURS[colour], number, size=16)
    for seed in (0, 1):
        flags = ("--images_per_shard", 3, "--seed", seed, "--val_fraction", 0.25)
        assert shard_command(tmp_path / "images", "--out", tmp_path / f"shards_{seed}", *flags)[0] == 0
    shutil.copy(tmp_path / "shards_1/train-000000.tar", tmp_path / "shards_0")
    shards = tmp_path / "shards_0"
    reasons = [decode_or_reason(path) for path in splits_of(shards).train.paths if "train-000000" in path]
    assert sum("another writing" in str(reason) for reason in reasons) >= 2  # one may lie where it lay
    code, _, err = shard_command("--check", shards)
    assert code == 2
    assert "train-000000.tar' has other bytes" in err


def test_the_record_of_images_notices_an_altered_shard(shards, tmp_path):
    paths = splits_of(shards).train.paths
    record = tmp_path / "record.npz"
    before = examine_images(paths, record=record)
    assert not before.bad
    file = shards / paths[0].shard.name
    content = bytearray(file.read_bytes())
    content[paths[0].offset + 30] ^= 255
    file.write_bytes(content)
    assert [bad.path for bad in examine_images(paths, record=record).bad] == [paths[0]]


def set_first(shards_key: str, value: object):
    return lambda content: content["shards"][0].update({shards_key: value})


def set_sample(place: int, value: object):
    def change(content):
        content["shards"][0]["samples"][0][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "version 2, and this version of sat_vg reads version 1"),
        (lambda c: c.update(format="others"), "no index of shards"),
        (lambda c: c.update(class_names=["a", "a", "b"]), "class_names"),
        (lambda c: c.update(class_names=["a"]), "class_names"),
        (lambda c: c.update(shards=None), "shards is None"),
        (lambda c: c["shards"].append(c["shards"][0]), "is there twice"),
        (set_first("name", "../train-000000.tar"), "no plain name"),
        (set_first("name", "/etc/passwd"), "no plain name"),
        (set_first("name", "$(touch pwned).tar"), "no plain name"),
        (set_first("name", "a b.tar"), "no plain name"),
        (set_first("name", "-rf.tar"), "no plain name"),
        (set_first("name", "x.tar\n"), "no plain name"),
        (set_first("split", "all"), "none of train, val, test"),
        (set_first("sha256", "0" * 63), "no SHA-256"),
        (set_first("bytes", -1), "no number of bytes"),
        (set_sample(0, "../../x.jpg"), "which is no image in it"),
        (set_sample(0, "/x.jpg"), "which is no image in it"),
        (set_sample(0, "a\x1b[2Jb.jpg"), "which is no image in it"),
        (set_sample(1, 3), "which is no image in it"),
        (set_sample(1, -1), "which is no image in it"),
        (set_sample(2, 10**9), "which is no image in it"),
        (set_sample(3, True), "which is no image in it"),
        (set_sample(4, None), "which is no image in it"),
    ],
)
def test_an_index_that_says_what_cannot_be_is_refused(shards, change, message):
    altered(shards, change)
    with pytest.raises(DataError, match=r"shards\.json") as caught:
        splits_of(shards)
    assert message in str(caught.value)


def test_an_index_that_is_no_json(shards):
    (shards / "shards.json").write_bytes((shards / "shards.json").read_bytes()[:500])
    with pytest.raises(DataError, match=r"damaged: it is no JSON.*sat-vg shard --index"):
        splits_of(shards)
    with pytest.raises(DataError, match="cannot be read"):
        splits_of(shards.parent / "nowhere/shards.json")


def test_settings_that_contradict_shards(shards, class_folders):
    with pytest.raises(ConfigError, match=r"shard_window = 2: dataset_path = .* holds no shards"):
        splits_of(class_folders, shard_window=2)
    with pytest.raises(ConfigError, match=r"shard_window = 2: sampler = 'weighted'"):
        splits_of(shards, shard_window=2, sampler="weighted")
    with pytest.raises(ConfigError, match=r"shard_window = 2: dataset = 'eurosat'"):
        FinetuneConfig(dataset="eurosat", shard_window=2)
    with pytest.raises(ConfigError, match=r"train_split = 'training'.*index"):
        splits_of(shards, train_split="training")
