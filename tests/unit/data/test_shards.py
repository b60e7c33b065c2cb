"""Shards: what is in them, what is read out of them, and what is refused."""

import json
import os
import pickle
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import COLOURS, write_image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from sat_vg.backbone_finetuning import shard
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks import examine_images
from sat_vg.backbone_finetuning.data.decoding import decode_or_reason, decode_rgb
from sat_vg.backbone_finetuning.data.loaders import ImageDataset
from sat_vg.backbone_finetuning.data.sampling import BatchPlan
from sat_vg.backbone_finetuning.data.shard_cache import SOURCE
from sat_vg.backbone_finetuning.data.shard_order import ShardWindows
from sat_vg.backbone_finetuning.data.shard_paths import ShardPath
from sat_vg.backbone_finetuning.data.sources import load_class_folders
from sat_vg.backbone_finetuning.preparation import load_splits
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.seeding import torch_generator

pytest.importorskip("webdataset", reason="shards are written with webdataset, which is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(SOURCE, raising=False)


@pytest.fixture
def command(capfd):
    """``sat-vg shard`` in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = shard.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def shards(class_folders, command, tmp_path) -> Path:
    """The class folders as 9 + 3 shards of 3 images."""
    code, _, err = command(class_folders, "--output_dir", tmp_path / "shards", "--images_per_shard", 3)
    assert code == 0, err
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 12
    return tmp_path / "shards"


def splits_of(path: Path, **settings: object):
    return load_splits(FinetuneConfig(dataset_path=str(path), **settings))


def altered(shards: Path, change) -> None:
    """The index with something changed in it."""
    content = json.loads((shards / "shards.json").read_text())
    change(content)
    (shards / "shards.json").write_text(json.dumps(content))


def pipe(tmp_path: Path, monkeypatch, shards: Path) -> tuple[Path, Path]:
    """The shards moved away, to be fetched by a command: the index alone, and a file with a line for each fetch."""
    away, log = tmp_path / "far away", tmp_path / "fetched.txt"
    shards.rename(away)
    shards.mkdir()
    shutil.copy(away / "shards.json", shards)
    monkeypatch.setenv(SOURCE, f"pipe:echo {{name}} >> '{log}'; cat '{away}'/{{name}}")
    return away, log


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
        windowed = BatchPlan(len(ours), 6, 0, ShardWindows.of(ours, 2)).batches(epoch)
        plain = BatchPlan(len(theirs), 6, 0).batches(epoch)
        read = [ours.paths[index].open().read() for batch in windowed for index in batch]
        assert Counter(read) == Counter(Path(theirs.paths[i]).read_bytes() for batch in plain for i in batch)
        orders.append(windowed)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == BatchPlan(len(ours), 6, 0, ShardWindows.of(ours, 2)).batches(1)


@pytest.mark.parametrize("window", [1, 2, 4, 9, 50])
def test_a_window_needs_few_shards_at_a_time(shards, window):
    train = splits_of(shards, shard_window=window).train
    order = ShardWindows.of(train, window)(len(train), torch_generator(5)).tolist()
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


def test_other_limits_and_seeds_give_the_same_images(class_folders, command, tmp_path):
    whole = splits_of(class_folders)
    for number, flags in enumerate((("--shard_mib", "0.02"), ("--images_per_shard", "5", "--seed", "3"), ())):
        folder = tmp_path / f"shards_{number}"
        assert command(class_folders, "--output_dir", folder, *flags)[0] == 0
        assert len(list(folder.glob("train-*.tar"))) == {0: len(list(folder.glob("train-*.tar"))), 1: 6, 2: 1}[number]
        if number == 0:
            sizes = [path.stat().st_size for path in folder.glob("train-*.tar")]
            assert 2 < len(sizes) < 27
            assert max(sizes) <= 0.02 * 2**20 + 10240  # tar rounds up to 20 blocks
        assert [path.open().read() for path in splits_of(folder).train.paths] == [
            Path(path).read_bytes() for path in whole.train.paths
        ]


def test_hostile_names_of_classes_and_files(tmp_path, command):
    names = ["sea. and\nsand", "森林 forest", "a'b\"$(touch pwned)`;&", "<script>", "dots..", "x" * 200]
    for number, name in enumerate(names):
        for count in range(5):
            write_image(
                tmp_path / "images" / name / f"é {count}.tar.gz .jpg", (40 * number, 90, 90), 9 * number + count
            )
    code, _, err = command(tmp_path / "images", "--output_dir", tmp_path / "shards", "--images_per_shard", 4)
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


def test_shards_of_another_writing_do_not_pass_for_these(tmp_path, command):
    # Pictures that take the same bytes, so that all shards of both writings have the same sizes.
    for number in range(12):
        colour = list(COLOURS)[number % 2]
        write_image(tmp_path / "images" / colour / f"{number:02d}.bmp", COLOURS[colour], number, size=16)
    for seed in (0, 1):
        flags = ("--images_per_shard", 3, "--seed", seed, "--val_fraction", 0.25)
        assert command(tmp_path / "images", "--output_dir", tmp_path / f"shards_{seed}", *flags)[0] == 0
    shutil.copy(tmp_path / "shards_1/train-000000.tar", tmp_path / "shards_0")
    shards = tmp_path / "shards_0"
    reasons = [decode_or_reason(path) for path in splits_of(shards).train.paths if "train-000000" in path]
    assert sum("another writing" in str(reason) for reason in reasons) >= 2  # one may lie where it lay
    code, _, err = command("--check", shards)
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
        for batch in BatchPlan(len(train), 6, 0, ShardWindows.of(train, 2)).batches(epoch):
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
        examine_images(train.paths, threads=2, show_progress=False)
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
    shards, class_folders, tmp_path, monkeypatch, command
):
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)  # importing it fails
    decode_rgb(splits_of(shards).train.paths[0])
    assert command("--check", shards)[0] == 0
    code, _, err = command(class_folders, "--output_dir", tmp_path / "others")
    assert code == 2
    assert "pip install 'sat_vg[webdataset]'" in err
    monkeypatch.setenv(SOURCE, "pipe:cat {name}")
    with pytest.raises(ConfigError, match=r"sat_vg\[webdataset\]"):
        splits_of(shards)


def tar_of(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            import io

            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def foreign(tmp_path):
    """Two tar files as others write them: folders in names, long names, other files, labels of numbers."""
    image = tmp_path / "one.png"
    for number in range(2):
        files = {}
        for count in range(10):
            write_image(image, COLOURS["sea"], 10 * number + count, size=8)
            key = f"./{'long' * 40}/{number}_{count}"
            files[f"{key}.seg.png" if count == 0 else f"{key}.png"] = image.read_bytes()
            files[f"{key}.cls"] = b"%d\n" % (count % 2)
            files[f"{key}.json"] = b'{"place": 3}'
        tar_of(tmp_path / f"foreign/data-{number}.tar", files)
    return tmp_path / "foreign"


def test_tar_files_of_others_get_an_index(foreign, command):
    with pytest.raises(DataError, match="sat-vg shard --index"):
        splits_of(foreign)
    code, _, err = command("--index", foreign)
    assert code == 0, err
    splits = splits_of(foreign)
    assert splits.class_names == ("0", "1")
    assert splits.val_is_drawn
    assert (len(splits.train), len(splits.val)) == (16, 4)
    assert splits.val.class_counts() == [2, 2]
    assert splits_of(foreign, shard_window=1).val.paths != ()
    assert Counter(map(str, splits_of(foreign, shard_window=1).val.paths)) == Counter(map(str, splits.val.paths))
    for path in splits.train.paths:
        assert decode_rgb(path).shape == (3, 8, 8)
        assert "/long" in path
    code, _, err = command("--index", foreign)
    assert code == 2
    assert "shards.json already" in err


def test_class_names_of_tar_files_of_others(foreign, command):
    (foreign / "classes.txt").write_text("lake\nriver\npond\n")
    assert command("--index", foreign)[0] == 0
    assert splits_of(foreign).class_names == ("lake", "river", "pond")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b"", "b.cls": b"0"}, "has no label for 'a.png'"),
        ({"a.png": b"x", "a.cls": b"0", "b.cls": b"0"}, "a label and no image under 'b'"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"0"}, "two images under 'a'"),
        ({"../a.png": b"x", "../a.cls": b"0"}, "'../a.png', which is no name to read"),
        ({"a.png": b"x", "a.cls": b"99999999"}, "can be no number of a class"),
        ({"a.png": b"x", "a.cls": b"0"}, "only the class"),
        ({"a.png": b"x", "a.json": b"[0, 1]"}, "the classes [0, 1]"),
        ({"a.txt": b"x"}, "holds no images"),
    ],
)
def test_tar_files_that_make_no_data_set(tmp_path, command, files, message):
    tar_of(tmp_path / "odd/x.tar", files)
    code, _, err = command("--index", tmp_path / "odd")
    assert code == 2
    assert message in err, err
    assert not (tmp_path / "odd/shards.json").exists()


def test_no_tar_file_and_a_damaged_one(tmp_path, command):
    assert "holds no .tar files" in command("--index", tmp_path)[2]
    (tmp_path / "x.tar").write_bytes(b"no tar" * 500)
    code, _, err = command("--index", tmp_path)
    assert code == 2
    assert "x.tar' is no tar file" in err


def test_several_classes_an_image(tmp_path, command):
    rows = ["path,labels"]
    for number in range(24):
        write_image(tmp_path / f"images/{number}.png", COLOURS["sea"], number, size=8)
        rows.append(f"images/{number}.png,{('', 'a', 'b', 'a|b')[number % 4]}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    code, _, err = command(tmp_path / "images.csv", "--output_dir", tmp_path / "shards", "--images_per_shard", 5)
    assert code == 0, err
    ours, theirs = splits_of(tmp_path / "shards"), splits_of(tmp_path / "images.csv")
    assert ours.train.label_sets == theirs.train.label_sets
    for one, other in zip(ours.parts, theirs.parts, strict=True):
        assert one.labels == other.labels
        assert [path.open().read() for path in one.paths] == [Path(path).read_bytes() for path in other.paths]


def test_shards_out_of_shards(shards, command, tmp_path):
    code, _, err = command(shards, "--output_dir", tmp_path / "larger", "--images_per_shard", 20)
    assert code == 0, err
    old, new = splits_of(shards), splits_of(tmp_path / "larger")
    assert [path.open().read() for path in new.train.paths] == [path.open().read() for path in old.train.paths]
    assert new.train.labels == old.train.labels
