"""Training on a data set that torchvision knows, by its name: train, val and test as the data set has them."""

from pathlib import Path

from sat_vg.backbone_finetuning.data.sources.dataset_copies import list_files, require_copy, unpacked
from sat_vg.backbone_finetuning.data.sources.listed_splits import ListedImage, splits_of
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery, Source
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.sources.torchvision_datasets import DATASETS, NamedDataset
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import DataError

COPIES, UNPACKED = "datasets", "unpacked"  # in the cache folder


class NamedDatasets(Source):
    """The source of data sets that torchvision knows by name."""

    def takes(self, query: ImageQuery) -> bool:
        """See ``Source``."""
        return query.dataset is not None

    def load_splits(self, query: ImageQuery) -> Splits:
        """See ``load_named``."""
        return load_named(query)


NAMED_DATASETS = NamedDatasets()


def load_named(query: ImageQuery) -> Splits:
    """Images of a data set: train, val and test as it has them, with its class names, sorted.

    The path is that of a copy in torchvision's layout; where none is given, it lies in the cache folder. What is
    missing there is downloaded.

    Raises:
        DataError: there is no whole copy and none can be downloaded, or it is damaged.
    """
    assert query.dataset is not None
    name, folder = query.dataset, None if query.path is None else query.place
    dataset = DATASETS[name]
    if folder is not None and not folder.is_dir():
        raise DataError(
            f"there is no folder {str(folder)!r} with a copy of {dataset.title}; check --dataset_path, or leave it "
            f"out for the cache folder ({str(cache_folder() / COPIES / name)!r})"
        )
    root = cache_folder() / COPIES / name if folder is None else folder
    require_copy(dataset, root, query.tell)
    if dataset.files is None:
        found = unpacked(name, dataset, root, cache_folder() / UNPACKED, query.tell)
    else:
        found = list_files(dataset, root)
        _require_inside(dataset, root, found)
    parts = {
        part: [ListedImage(path, (class_name,), path) for path, class_name in images]
        for part, images in found.items()
    }
    how = f", split by seed {query.seed}"
    if len(parts) > 1:
        how = f", which has no val, so val is {100 * query.val_fraction:g}% of train by seed {query.seed}"
    return splits_of(parts, dataset.title, query, how)


def _require_inside(dataset: NamedDataset, root: Path, found: dict[str, list[tuple[str, str]]]) -> None:
    """Refuse a copy whose lists name files elsewhere on this machine."""
    for images in found.values():
        for path, _ in images:
            if not Path(path).is_relative_to(root) or ".." in Path(path).parts[len(root.parts) :]:
                raise DataError(
                    f"the copy of {dataset.title} in {str(root)!r} names a file outside itself, {path!r}: it is not "
                    "the data set; use another copy"
                )
