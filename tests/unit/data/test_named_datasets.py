"""Every data set that can be named, read by torchvision's own classes from tiny files in its own format."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import multiprocessing
import os
import signal
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision
from tiny_datasets import BUILDERS, class_folder, eurosat, idx, md5, pixels

from sat_vg.backbone_finetuning.configs.choices import DATASETS as DATASET_NAMES
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.sources.named_datasets import NAMED_DATASETS
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.sources.torchvision_datasets import DATASETS
from sat_vg.backbone_finetuning.utils.errors import DataError

IN_PROCESSES = multiprocessing.get_context("fork")


def load_named(name: str, folder: Path | None = None, **options: object) -> Splits:
    path = None if folder is None else str(folder)
    return NAMED_DATASETS.load_splits(ImageQuery(dataset=name, path=path, **options))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    return folder


def counted(split) -> dict[str, int]:
    return {name: count for name, count in zip(split.class_names, split.class_counts(), strict=True) if count}


def test_the_configuration_knows_the_same_names():
    assert tuple(DATASETS) == DATASET_NAMES
    assert set(BUILDERS) == set(DATASETS)
    for dataset in DATASETS.values():
        assert hasattr(torchvision.datasets, dataset.kind)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_copy_of_each(name, copy, cache, monkeypatch):
    expected = BUILDERS[name](copy, monkeypatch)
    monkeypatch.setattr("socket.socket.connect", None)  # whatever is there is not downloaded
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    splits = load_named(name, copy, val_fraction=0.34, seed=1)
    assert splits.class_names == tuple(sorted(expected["train"]))
    if "val" in expected:
        assert counted(splits.train) == expected["train"]
        assert counted(splits.val) == expected["val"]
        assert not splits.val_is_drawn
    else:
        assert splits.val_is_drawn
        assert Counter(counted(splits.train)) + Counter(counted(splits.val)) == Counter(expected["train"])
        assert min(splits.val.class_counts()) > 0
    assert (splits.test is None) == ("test" not in expected)
    if splits.test is not None:
        assert counted(splits.test) == expected["test"]
    for split in splits.parts:
        assert len(set(split.paths)) == len(split)
        assert decode_rgb(split.paths[0]).shape[0] == 3
    assert f"({DATASETS[name].title})" in splits.description
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before  # nothing is written into a copy
    assert load_named(name, copy, val_fraction=0.34, seed=1) == splits
    assert all(Path(path).is_relative_to(copy) for path in splits.train.paths) == (DATASETS[name].files is not None)


def test_what_is_unpacked_are_the_very_pixels(copy, cache, monkeypatch):
    idx(copy, "FashionMNIST")
    splits = load_named("fashion_mnist", copy)
    images, true = pixels(40, 40, 4, 4), torchvision.datasets.FashionMNIST.classes
    label = splits.class_names.index("T-shirt/top")
    shirts = [path for path, n in zip(splits.train.paths, splits.train.labels, strict=True) if n == label]
    assert len(shirts) == 3
    for path in shirts:
        number = int(Path(path).stem)
        assert true[number % 10] == "T-shirt/top"
        grey = decode_rgb(path).numpy()
        assert (grey == images[number]).all()
    assert Path(shirts[0]).is_relative_to(cache / "unpacked")
    # Other files are another data set; the same ones are found again.
    raw = copy / "FashionMNIST/raw/train-images-idx3-ubyte"
    changed = bytearray(raw.read_bytes())
    changed[16] ^= 255
    raw.write_bytes(changed)
    assert set(load_named("fashion_mnist", copy).train.paths).isdisjoint(splits.train.paths)
    assert len([each for each in (cache / "unpacked").iterdir() if each.is_dir()]) == 2


def unpack_in_process(copy: Path, found: "multiprocessing.SimpleQueue | None" = None) -> None:
    splits = load_named("mnist", copy)
    if found is not None:
        found.put(splits)


def test_a_killed_unpacking_is_not_taken_for_whole(copy, cache):
    idx(copy, "MNIST", train=6000, test=10)
    process = IN_PROCESSES.Process(target=unpack_in_process, args=(copy,))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(cache.glob("unpacked/.mnist-*.unfinished.tmp/train/*/*.png"))) < 20:
        assert process.is_alive()
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [each for each in (cache / "unpacked").iterdir() if not each.name.startswith(".")] == []
    splits = load_named("mnist", copy)
    assert len(splits.train) + len(splits.val) == 6000
    assert list(cache.glob("unpacked/.mnist-*.tmp")) == []


def test_two_processes_at_once(copy, cache):
    idx(copy, "MNIST", train=1000, test=10)
    found = IN_PROCESSES.SimpleQueue()
    processes = [IN_PROCESSES.Process(target=unpack_in_process, args=(copy, found)) for _ in range(2)]
    for process in processes:
        process.start()
    one, other = found.get(), found.get()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert one == other == load_named("mnist", copy)
    assert all(Path(path).is_file() for path in one.train.paths)
    assert len(list((cache / "unpacked").glob("mnist-*"))) == 1


@contextlib.contextmanager
def server(folder: Path):
    """A web server on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/"
        finally:
            running.shutdown()
            thread.join()


def serve_mnist(folder: Path, monkeypatch, url: str) -> None:
    """Let torchvision's MNIST be downloaded from a folder of this machine, with the checksums of what lies there."""
    idx(folder / "made", "MNIST")
    resources = []
    for name, _ in torchvision.datasets.MNIST.resources:
        packed = gzip.compress((folder / "made/MNIST/raw" / name.removesuffix(".gz")).read_bytes())
        (folder / name).write_bytes(packed)
        resources.append((name, hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)


def test_a_download(tmp_path, cache, monkeypatch):
    lines = []
    folder = tmp_path / "served"
    folder.mkdir()
    with server(folder) as url:
        serve_mnist(folder, monkeypatch, url)
        splits = load_named("mnist", tell=lines.append)
    assert sum(map(len, splits.parts)) == 50
    assert len(lines) == 2
    assert lines[1].startswith(f"unpacking MNIST into '{cache}/unpacked/mnist-")
    assert lines[0].startswith(f"'{cache}/datasets/mnist' holds no whole copy of MNIST (not there: MNIST/raw/train-i")
    assert lines[0].endswith("downloading it")
    assert sorted(path.name for path in (cache / "datasets/mnist").iterdir()) == [".MNIST.lock", "MNIST"]
    assert load_named("mnist", tell=lines.append) == splits  # the server is gone
    assert len(lines) == 2


def test_a_download_that_fails_leaves_nothing_that_counts(tmp_path, cache, monkeypatch):
    folder = tmp_path / "served"
    folder.mkdir()
    with server(folder) as url:
        serve_mnist(folder, monkeypatch, url)
        last = folder / torchvision.datasets.MNIST.resources[-1][0]
        whole = last.read_bytes()
        last.write_bytes(whole[:-1])
        with pytest.raises(DataError) as caught:
            load_named("mnist")
        assert [path.name for path in (cache / "datasets/mnist").iterdir()] == [".MNIST.lock"]
        last.write_bytes(whole)
        assert sum(map(len, load_named("mnist").parts)) == 50
    message = str(caught.value)
    for part in (
        f"'{cache}/datasets/mnist' holds no whole copy of MNIST",
        "downloading it failed (RuntimeError: ",  # and torchvision's reason, which differs by version
        "\nBy hand: bring train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-"
        f"ubyte (each unpacked from its .gz) in MNIST/raw/.\nAll of it belongs in '{cache}/datasets/mnist', or in "
        "another folder that you name with --dataset_path DIR",
    ):
        assert part in message


def test_without_a_network(cache, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # where nobody listens
    with pytest.raises(DataError, match=r"downloading it failed \(.*Connection refused.*\)\.\nBy hand: bring"):
        load_named("mnist")


def test_what_is_missing_joins_what_is_there(tmp_path, copy, monkeypatch):
    folder = tmp_path / "served"
    folder.mkdir()
    with server(folder) as url:
        serve_mnist(folder, monkeypatch, url)
        raw = copy / "MNIST/raw"
        raw.mkdir(parents=True)
        mine = raw / "train-images-idx3-ubyte"
        mine.write_bytes((folder / "made/MNIST/raw/train-images-idx3-ubyte").read_bytes())
        before = mine.stat().st_mtime_ns
        assert sum(map(len, load_named("mnist", copy).parts)) == 50
    assert mine.stat().st_mtime_ns == before
    assert {path.name for path in copy.iterdir()} == {"MNIST", ".MNIST.lock"}


@pytest.mark.parametrize("name", ["imagenet", "inaturalist"])
def test_what_is_never_downloaded(name, cache):
    with pytest.raises(
        DataError, match=r"cannot be downloaded by a program\.\nBy hand: bring .*_?train.*tar"
    ) as caught:
        load_named(name)
    assert f"'{cache}/datasets/{name}'" in str(caught.value)
    assert not (cache / "datasets").exists()


def test_archives_of_imagenet_are_unpacked(copy, monkeypatch):
    io = pytest.importorskip("scipy.io")
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object), ("children", object)]
    synsets = [(1, "n01", "tench, Tinca", "", 0), (2, "n02", "crane", "", 0), (3, "n9", "all", "", 2)]
    kit = copy / "work/ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    io.savemat(kit / "meta.mat", {"synsets": np.array(synsets, dtype=fields)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    class_folder(copy / "work/val", ["a", "b"], "JPEG")
    for wnid in ("n01", "n02"):
        class_folder(copy / f"work/{wnid}", [f"{wnid}_{index}" for index in range(3)], "JPEG")
        with tarfile.open(copy / f"work/{wnid}.tar", "w") as tar:
            for path in (copy / f"work/{wnid}").iterdir():
                tar.add(path, path.name)
    contents = {
        "devkit": ("ILSVRC2012_devkit_t12.tar.gz", [kit.parent]),
        "train": ("ILSVRC2012_img_train.tar", [copy / "work/n01.tar", copy / "work/n02.tar"]),
        "val": ("ILSVRC2012_img_val.tar", list((copy / "work/val").iterdir())),
    }
    known = {}
    for what, (name, members) in contents.items():
        with tarfile.open(copy / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for path in members:
                tar.add(path, path.name)
        known[what] = (name, md5(copy / name))
    monkeypatch.setattr("torchvision.datasets.imagenet.ARCHIVE_META", known)
    lines = []
    splits = load_named("imagenet", copy, tell=lines.append)
    assert counted(splits.train) == {"crane": 3, "tench, Tinca": 3}
    names = {
        Path(path).name: splits.val.name_of(n) for path, n in zip(splits.val.paths, splits.val.labels, strict=True)
    }
    assert names == {"a.JPEG": "crane", "b.JPEG": "tench, Tinca"}
    assert lines[0].endswith("; unpacking the archives")
    assert all((copy / name).is_file() and not (copy / name).is_symlink() for name, _ in contents.values())
    assert list(copy.glob(".ImageNet.*.unfinished")) == []
    (copy / "val/n01/b.JPEG").unlink()
    (copy / "val/n01").rmdir()
    (copy / "ILSVRC2012_img_val.tar").write_bytes(b"cut off")
    (copy / "meta.bin").unlink()
    with pytest.raises(DataError, match=r"the archives in it cannot be unpacked \(RuntimeError: The archive ILSVRC"):
        load_named("imagenet", copy)


def test_damaged_copies(copy, monkeypatch):
    idx(copy, "MNIST")
    (copy / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"copy of MNIST in .* cannot be read \(.*Remove MNIST/raw/train-images.*anew"
    ):
        load_named("mnist", copy)
    BUILDERS["cifar10"](copy, monkeypatch)
    (copy / "cifar-10-batches-py/test_batch").write_bytes(b"not what it was")
    with pytest.raises(DataError, match=r"CIFAR-10 .* cannot be read \(RuntimeError: Dataset not found or corrupted"):
        load_named("cifar10", copy)
    BUILDERS["food101"](copy, monkeypatch)
    (copy / "food-101/meta/train.json").write_text("[1")
    with pytest.raises(DataError, match=r"Food-101 .* cannot be read \(JSONDecodeError"):
        load_named("food101", copy)
    BUILDERS["stl10"](copy, monkeypatch)
    (copy / "stl10_binary/class_names.txt").unlink()
    with pytest.raises(DataError, match=r"STL-10 .* cannot be read \(AttributeError"):
        load_named("stl10", copy)


@pytest.mark.parametrize("listed", ["../../../../etc/secret", "/etc/secret"])
def test_a_copy_names_no_files_elsewhere(copy, monkeypatch, listed):
    BUILDERS["oxford_iiit_pet"](copy, monkeypatch)
    with (copy / "oxford-iiit-pet/annotations/trainval.txt").open("a") as file:
        file.write(f"{listed}_1 1 1 1\n")
    with pytest.raises(DataError, match=r"names a file outside itself, .*secret_1\.jpg"):
        load_named("oxford_iiit_pet", copy)


def test_a_folder_that_is_not_there(tmp_path, cache, monkeypatch):
    with pytest.raises(DataError, match=r"no folder .*copyy' with a copy of EuroSAT; check --dataset_path, or leave"):
        load_named("eurosat", tmp_path / "copyy")
    assert not (tmp_path / "copyy").exists()
    eurosat(cache / "datasets/eurosat", monkeypatch)
    assert len(load_named("eurosat").class_names) == 2


def test_no_room_to_unpack(tmp_path, copy, monkeypatch):
    idx(copy, "MNIST")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"MNIST cannot be unpacked into .*set SAT_VG_CACHE to another folder"):
        load_named("mnist", copy)


def test_scipy_is_asked_for_before_anything_is_downloaded(monkeypatch, copy):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"SVHN comes in MATLAB's files, which scipy reads: pip install scipy"):
        load_named("svhn", copy)


def test_some_folders_of_caltech_256_are_enough(copy):
    for name in ("003.backpack", "101.head-phones", "251.airplanes-101"):
        images = [f"{name[:3]}_{index:04d}" for index in range(1, 4)]
        class_folder(copy / "caltech256/256_ObjectCategories" / name, images)
    splits = load_named("caltech256", copy, val_fraction=0.34)
    assert splits.class_names == ("003.backpack", "101.head-phones", "251.airplanes-101")
    for split in splits.parts:
        for path, label in zip(split.paths, split.labels, strict=True):
            assert Path(path).is_file()
            assert split.class_names[label][:3] == Path(path).name[:3]
