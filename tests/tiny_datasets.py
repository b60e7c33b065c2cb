"""Tiny copies of the data sets that can be named, in their own file formats, as torchvision reads them."""

import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import write_image
from PIL import Image

Counts = dict[str, dict[str, int]]  # images of each class by part


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def class_folder(folder: Path, names: list[str], ending: str = "jpg") -> None:
    for seed, name in enumerate(names):
        write_image(folder / f"{name}.{ending}", (9, 9, 9), seed, size=8)


def idx(root: Path, kind: str, train: int = 40, test: int = 10) -> Counts:
    """Image number i is of class i % 10."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        images = pixels(count, count, 4, 4)
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 4, 4) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    names = getattr(torchvision.datasets, kind).classes
    return {"train": dict.fromkeys(names, train // 10), "test": dict.fromkeys(names, test // 10)}


def cifar(root: Path, patch: pytest.MonkeyPatch, kind: str, folder: str, key: str, label_key: str) -> Counts:
    """torchvision knows the checksums of the true files only, so those of the tiny ones are put in their place."""
    of_torchvision = getattr(torchvision.datasets, kind)
    names = ["frog", "cat/dog", ".."]
    files = {}
    for seed, (attribute, count) in enumerate((("train_list", 12), ("test_list", 6))):
        for name, _ in getattr(of_torchvision, attribute)[:1]:
            files[name] = {"data": pixels(seed, count, 3072), label_key: [index % 3 for index in range(count)]}
    files[of_torchvision.meta["filename"]] = {key: names}
    (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / folder / name).write_bytes(pickle.dumps(content))
    for attribute in ("train_list", "test_list"):
        name = getattr(of_torchvision, attribute)[0][0]
        patch.setattr(of_torchvision, attribute, [[name, md5(root / folder / name)]])
    meta = of_torchvision.meta
    patch.setattr(of_torchvision, "meta", {**meta, "md5": md5(root / folder / meta["filename"])})
    return {"train": dict.fromkeys(names, 4), "test": dict.fromkeys(names, 2)}


def svhn(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    io = pytest.importorskip("scipy.io")
    lists = {}
    for part, count in (("train", 30), ("test", 10)):
        path = root / f"{part}_32x32.mat"
        io.savemat(path, {"X": pixels(count, 32, 32, 3, count), "y": (np.arange(count) % 10 + 1)[:, None]})
        lists[part] = ["", path.name, md5(path)]
    patch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    digits = [str(digit) for digit in range(10)]
    return {"train": dict.fromkeys(digits, 3), "test": dict.fromkeys(digits, 1)}


def stl10(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    folder = root / "stl10_binary"
    folder.mkdir()
    for name, count in (("train", 6), ("test", 4), ("unlabeled", 1)):
        (folder / f"{name}_X.bin").write_bytes(pixels(count, count, 3, 96, 96).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes(index % 2 + 1 for index in range(count)))
    (folder / "class_names.txt").write_text("bird\nship\n")
    kind = torchvision.datasets.STL10
    for attribute in ("train_list", "test_list"):
        patch.setattr(kind, attribute, [[name, md5(folder / name)] for name, _ in getattr(kind, attribute)])
    return {"train": {"bird": 3, "ship": 3}, "test": {"bird": 2, "ship": 2}}


def gtsrb(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    for part in ("GTSRB/Training/00000", "GTSRB/Training/00001", "GTSRB/Final_Test/Images"):
        (root / "gtsrb" / part).mkdir(parents=True)
        for index in range(4):
            place = root / "gtsrb" / part / f"{index:05d}.ppm"
            Image.fromarray(pixels(len(part) + index, 8, 8, 3)).save(place)
    rows = "".join(f"{index:05d}.ppm;8;8;0;0;8;8;{index % 2}\n" for index in range(4))
    (root / "gtsrb/GT-final_test.csv").write_text(
        f"Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n{rows}"
    )
    return {"train": {"00000": 4, "00001": 4}, "test": {"00000": 2, "00001": 2}}


def eurosat(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    for name in ("Forest", "SeaLake"):
        class_folder(root / "eurosat/2750" / name, [f"{name}_{index}" for index in range(5)])
    return {"train": {"Forest": 5, "SeaLake": 5}}


def caltech101(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    for name in ("BACKGROUND_Google", "ant", "ferry"):
        class_folder(root / "caltech101/101_ObjectCategories" / name, [f"image_{index:04d}" for index in range(1, 4)])
    return {"train": {"ant": 3, "ferry": 3}}


def caltech256(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    for label, name in enumerate(("001.ak47", "002.american-flag"), 1):
        names = [f"{label:03d}_{index:04d}" for index in range(1, 4)]
        class_folder(root / "caltech256/256_ObjectCategories" / name, names)
    (root / "caltech256/256_ObjectCategories/001.ak47/RENAME2").write_text("as in the true one")
    return {"train": {"001.ak47": 3, "002.american-flag": 3}}


def imagenet(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    words = {"n01": ("tench", "Tinca tinca"), "n02": ("crane",), "n03": ("crane",)}
    torch.save((words, []), root / "meta.bin")
    for part, count in (("train", 4), ("val", 2)):
        for wnid in words:
            class_folder(root / part / wnid, [f"{part}_{index}" for index in range(count)], "JPEG")
    names = ["tench, Tinca tinca", "crane (n02)", "crane (n03)"]
    return {"train": dict.fromkeys(names, 4), "val": dict.fromkeys(names, 2)}


def inaturalist(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    names = [
        f"{number:05d}_Animalia_Arthropoda_Insecta_Coleoptera_Cleridae_Trichodes_{number}" for number in range(2)
    ]
    for part, count in (("2021_train", 4), ("2021_valid", 2)):
        for name in names:
            class_folder(root / part / name, [f"{part}_{index}" for index in range(count)])
    return {"train": dict.fromkeys(names, 4), "val": dict.fromkeys(names, 2)}


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    io = pytest.importorskip("scipy.io")
    folder = root / "flowers-102"
    class_folder(folder / "jpg", [f"image_{index:05d}" for index in range(1, 11)])
    io.savemat(folder / "imagelabels.mat", {"labels": np.arange(10) % 2 + 1})
    io.savemat(folder / "setid.mat", {"trnid": np.arange(1, 5), "valid": np.arange(5, 7), "tstid": np.arange(7, 11)})
    kind = torchvision.datasets.Flowers102
    files = {"label": "imagelabels.mat", "setid": "setid.mat"}
    own = {what: (name, md5(folder / name)) for what, name in files.items()}
    patch.setattr(kind, "_file_dict", {**kind._file_dict, **own})
    names = getattr(kind, "classes", ["001", "002"])[:2]
    return {"train": dict.fromkeys(names, 2), "val": dict.fromkeys(names, 1), "test": dict.fromkeys(names, 2)}


def food101(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    (root / "food-101/meta").mkdir(parents=True)
    for part, count in (("train", 4), ("test", 2)):
        listed = {name: [f"{name}/{part}_{index}" for index in range(count)] for name in ("ramen", "apple_pie")}
        (root / f"food-101/meta/{part}.json").write_text(json.dumps(listed))
        for files in listed.values():
            class_folder(root / "food-101/images", files)
    return {"train": {"apple_pie": 4, "ramen": 4}, "test": {"apple_pie": 2, "ramen": 2}}


def oxford_iiit_pet(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part, count in (("trainval", 4), ("test", 2)):
        rows = [
            (f"{name}_{part}{i}", label)
            for label, name in ((1, "Abyssinian"), (2, "shiba_inu"))
            for i in range(count)
        ]
        class_folder(folder / "images", [name for name, _ in rows])
        (folder / f"annotations/{part}.txt").write_text("".join(f"{name} {label} 1 1\n" for name, label in rows))
    return {"train": {"Abyssinian": 4, "Shiba Inu": 4}, "test": {"Abyssinian": 2, "Shiba Inu": 2}}


def dtd(root: Path, patch: pytest.MonkeyPatch) -> Counts:
    folder = root / "dtd/dtd"
    (folder / "labels").mkdir(parents=True)
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        files = [f"{name}/{name}_{part}{i}" for name in ("banded", "dotted") for i in range(count)]
        class_folder(folder / "images", files)
        (folder / f"labels/{part}1.txt").write_text("".join(f"{name}.jpg\n" for name in files))
    return {part: {"banded": count, "dotted": count} for part, count in (("train", 3), ("val", 2), ("test", 1))}


BUILDERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Counts]] = {
    "eurosat": eurosat,
    "mnist": lambda root, patch: idx(root, "MNIST"),
    "fashion_mnist": lambda root, patch: idx(root, "FashionMNIST"),
    "kmnist": lambda root, patch: idx(root, "KMNIST"),
    "cifar10": lambda root, patch: cifar(root, patch, "CIFAR10", "cifar-10-batches-py", "label_names", "labels"),
    "cifar100": lambda root, patch: cifar(
        root, patch, "CIFAR100", "cifar-100-python", "fine_label_names", "fine_labels"
    ),
    "svhn": svhn,
    "stl10": stl10,
    "caltech101": caltech101,
    "caltech256": caltech256,
    "imagenet": imagenet,
    "inaturalist": inaturalist,
    "flowers102": flowers102,
    "food101": food101,
    "oxford_iiit_pet": oxford_iiit_pet,
    "dtd": dtd,
    "gtsrb": gtsrb,
}
