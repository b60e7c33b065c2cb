"""Where images come from: the names of data sets, and settings that contradict one another about it."""

from collections.abc import Mapping
from typing import Any

# Those that torchvision reads; data/sources/torchvision_datasets.py says how.
DATASET_NAMES = (
    "eurosat", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10", "caltech101", "caltech256",
    "imagenet", "inaturalist", "flowers102", "food101", "oxford_iiit_pet", "dtd", "gtsrb",
)  # fmt: skip


def source_problems(values: Mapping[str, Any]) -> list[str]:
    """What is contradictory about where images come from, a line for each."""
    problems = []
    dataset, path = values["dataset"], values["dataset_path"]
    if values["shard_window"]:
        beside = f"shard_window = {values['shard_window']}:"
        if values["sampler"] != "uniform":
            problems.append(
                f"{beside} sampler = {values['sampler']!r} draws from all images at any time, and a window holds "
                "those of a few shards; leave one of the two out (class_weights balances the classes, too)"
            )
        if dataset is not None:
            problems.append(f"{beside} dataset = {dataset!r} does not lie in shards; leave one of the two out")
    if dataset is not None:
        if path is not None and path.lower().endswith(".csv"):
            problems.append(
                f"dataset = {dataset!r}: dataset_path = {path!r} is a table, but has to be the folder of a copy of "
                "that data set; leave one of the two out"
            )
        for name, usual in (("train_split", "train"), ("val_split", "val")):
            if values[name] != usual:
                problems.append(
                    f"{name} = {values[name]!r}: has no effect with dataset = {dataset!r}, which brings its own "
                    "splits; leave it out"
                )
    return problems
