"""The data sets that can be named: which class of torchvision's reads each of them, and where its files belong.

A data set of image files is used where it lies. One that is packed into arrays, or into files that are not decoded
here, is unpacked into PNG files first.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

_Files = Callable[[Any], Iterable[tuple[str, str]]]


@dataclass(frozen=True)
class NamedDataset:
    """A data set that torchvision reads."""

    title: str  # its name as its authors write it
    kind: str  # torchvision's class
    parts: Mapping[str, Mapping[str, Any]]  # the arguments that give train and, where they are its own, val and test
    needs: tuple[str, ...]  # paths that a complete copy has in its folder
    by_hand: str  # what to bring into that folder where it cannot be downloaded
    files: _Files | None = None  # path and class of each image of an object of that class; None: they are unpacked
    class_names: Callable[[Any], Sequence[str]] = attrgetter("classes")  # by number, for what is unpacked
    can_download: bool = True  # torchvision fetches it, and its terms let a program do that
    # files in the folder that torchvision unpacks where ``needs`` are missing, though it fetches nothing
    archives: tuple[str, ...] = ()
    needs_scipy: bool = False  # a file of it is MATLAB's
    # what a training image can be changed by and still show its class, unless another is asked for
    augmentation: str = "basic"  # photographs have an "up", and left and right alike
    is_small: bool = False  # its images have fewer pixels than networks are made for


def _samples(dataset: Any) -> Iterable[tuple[str, str]]:
    """Of class folders."""
    return ((path, dataset.classes[label]) for path, label in dataset.samples)


def _imagenet(dataset: Any) -> Iterable[tuple[str, str]]:
    """With the words of each class; where two classes have the same ones ("crane"), with its WordNet id."""
    words = [", ".join(each) for each in dataset.classes]
    count = Counter(words)
    names = [f"{each} ({wnid})" if count[each] > 1 else each for each, wnid in zip(words, dataset.wnids, strict=True)]
    return ((path, names[label]) for path, label in dataset.samples)


def _image_files(dataset: Any) -> Iterable[tuple[str, str]]:
    """Of a list of files and one of labels."""
    # Flowers102 has its names since torchvision 0.22 only.
    names = getattr(dataset, "classes", None) or [f"{number:03d}" for number in range(1, 1 + max(dataset._labels))]
    files = dataset._images if hasattr(dataset, "_images") else dataset._image_files
    return ((str(path), names[label]) for path, label in zip(files, dataset._labels, strict=True))


def _caltech101(dataset: Any) -> Iterable[tuple[str, str]]:
    root = Path(dataset.root) / "101_ObjectCategories"
    for label, index in zip(dataset.y, dataset.index, strict=True):
        name = dataset.categories[label]
        yield str(root / name / f"image_{index:04d}.jpg"), name


def _caltech256(dataset: Any) -> Iterable[tuple[str, str]]:
    root = Path(dataset.root) / "256_ObjectCategories"
    for label, index in zip(dataset.y, dataset.index, strict=True):
        name = dataset.categories[label]
        number = name.partition(".")[0]  # not the label, which counts the folders that are there
        yield str(root / name / f"{number}_{index:04d}.jpg"), name


def _inaturalist(dataset: Any) -> Iterable[tuple[str, str]]:
    root = Path(dataset.root)
    for label, file in dataset.index:
        name = dataset.all_categories[label]
        yield str(root / name / file), name


_ALL: Mapping[str, Mapping[str, Any]] = {"train": {}}
_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST: Mapping[str, Mapping[str, Any]] = {part: {"split": part} for part in ("train", "test")}
_TRAIN_VAL: Mapping[str, Mapping[str, Any]] = {part: {"split": part} for part in ("train", "val")}
_ALL_THREE: Mapping[str, Mapping[str, Any]] = {part: {"split": part} for part in ("train", "val", "test")}
_IDX_FILES = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))


def _idx(title: str, kind: str, augmentation: str) -> NamedDataset:
    """A data set in the files of MNIST."""
    needs = tuple(f"{kind}/raw/{name}" for name in _IDX_FILES)
    by_hand = f"{', '.join(_IDX_FILES)} (each unpacked from its .gz) in {kind}/raw/"
    return NamedDataset(title, kind, _FLAG, needs, by_hand, augmentation=augmentation, is_small=True)


DATASETS: Mapping[str, NamedDataset] = {
    "eurosat": NamedDataset(
        "EuroSAT", "EuroSAT", _ALL, ("eurosat/2750",),
        "EuroSAT.zip, unpacked in eurosat/ (which gives eurosat/2750/)",
        files=_samples, augmentation="satellite", is_small=True,
    ),
    "mnist": _idx("MNIST", "MNIST", "crops"),
    "fashion_mnist": _idx("Fashion-MNIST", "FashionMNIST", "basic"),
    "kmnist": _idx("Kuzushiji-MNIST", "KMNIST", "crops"),
    "cifar10": NamedDataset(
        "CIFAR-10", "CIFAR10", _FLAG, ("cifar-10-batches-py",),
        "cifar-10-python.tar.gz, unpacked (which gives cifar-10-batches-py/)",
        is_small=True,
    ),
    "cifar100": NamedDataset(
        "CIFAR-100", "CIFAR100", _FLAG, ("cifar-100-python",),
        "cifar-100-python.tar.gz, unpacked (which gives cifar-100-python/)",
        is_small=True,
    ),
    "svhn": NamedDataset(
        "SVHN", "SVHN", _TRAIN_TEST, ("train_32x32.mat", "test_32x32.mat"), "train_32x32.mat and test_32x32.mat",
        class_names=lambda _: list("0123456789"), needs_scipy=True, augmentation="crops", is_small=True,
    ),
    "stl10": NamedDataset(
        "STL-10", "STL10", _TRAIN_TEST, ("stl10_binary",),
        "stl10_binary.tar.gz, unpacked (which gives stl10_binary/)",
        is_small=True,
    ),
    "caltech101": NamedDataset(
        "Caltech 101", "Caltech101", _ALL, ("caltech101/101_ObjectCategories",),
        "101_ObjectCategories.tar.gz out of caltech-101.zip, unpacked in caltech101/",
        files=_caltech101,
    ),
    "caltech256": NamedDataset(
        "Caltech 256", "Caltech256", _ALL, ("caltech256/256_ObjectCategories",),
        "256_ObjectCategories.tar, unpacked in caltech256/",
        files=_caltech256,
    ),
    "imagenet": NamedDataset(
        "ImageNet", "ImageNet", _TRAIN_VAL, ("meta.bin", "train", "val"),
        "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar as they are, which are "
        "then unpacked (needs scipy); or train/ and val/ with a folder for each class and meta.bin, as torchvision "
        "makes them",
        files=_imagenet, can_download=False,
        archives=("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    ),
    "inaturalist": NamedDataset(
        "iNaturalist 2021", "INaturalist",
        {"train": {"version": "2021_train"}, "val": {"version": "2021_valid"}},
        ("2021_train", "2021_valid"),
        "train.tar.gz and val.tar.gz of 2021, unpacked and renamed 2021_train/ and 2021_valid/",
        files=_inaturalist, can_download=False,
    ),
    "flowers102": NamedDataset(
        "Flowers 102", "Flowers102", _ALL_THREE,
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        "102flowers.tgz, unpacked in flowers-102/ (which gives flowers-102/jpg/), beside it imagelabels.mat and "
        "setid.mat",
        files=_image_files, needs_scipy=True,
    ),
    "food101": NamedDataset(
        "Food-101", "Food101", _TRAIN_TEST, ("food-101/images", "food-101/meta"),
        "food-101.tar.gz, unpacked (which gives food-101/)",
        files=_image_files,
    ),
    "oxford_iiit_pet": NamedDataset(
        "Oxford-IIIT Pet", "OxfordIIITPet",
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        "images.tar.gz and annotations.tar.gz, unpacked in oxford-iiit-pet/",
        files=_image_files,
    ),
    "dtd": NamedDataset(
        "DTD", "DTD", _ALL_THREE, ("dtd/dtd/images", "dtd/dtd/labels"),
        "dtd-r1.0.1.tar.gz, unpacked in dtd/ (which gives dtd/dtd/)",
        files=_image_files,
    ),
    "gtsrb": NamedDataset(
        "GTSRB", "GTSRB", _TRAIN_TEST,
        ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
        "GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip, unpacked in gtsrb/",
        class_names=lambda _: [f"{number:05d}" for number in range(43)],  # as its folders are called
        augmentation="crops", is_small=True,  # a sign mirrored is another sign
    ),
}  # fmt: skip
