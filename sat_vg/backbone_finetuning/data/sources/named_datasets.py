"""Training on a data set that torchvision knows, by its name: train, val and test as the data set has them."""

from collections.abc import Callable
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources.dataset_copies import list_files, require_copy, unpacked
from sat_vg.backbone_finetuning.data.sources.listed_splits import Drawing, ListedImage, splits_of
from sat_vg.backbone_finetuning.data.sources.source import ImageList, ImageQuery, list_splits
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.sources.torchvision_datasets import DATASETS, NamedDataset
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import DataError

COPIES, UNPACKED = "datasets", "unpacked"  # in the cache folder


class NamedDatasets:
    """The source of data sets that torchvision knows by name."""

    def takes(self, query: ImageQuery) -> bool:
        """See ``Source``."""
        return query.dataset is not None

    def load_splits(self, query: ImageQuery) -> Splits:
        """See ``load_named``."""
        assert query.dataset is not None
        folder = None if query.path is None else query.place
        return load_named(query.dataset, folder, val_fraction=query.val_fraction, seed=query.seed, tell=query.tell)

    def list_images(self, query: ImageQuery) -> ImageList:
        """See ``Source``."""
        return list_splits(self.load_splits(query))


NAMED_DATASETS = NamedDatasets()


def load_named(
    name: str,
    folder: Path | None = None,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> Splits:
    """List the images of a data set, without opening them.

    Args:
        name: of the data set.
        folder: that of a copy, in torchvision's layout; None: one in the cache folder. What is missing there is
            downloaded.
        val_fraction: share of each class of train that becomes val where the data set has no val, in (0, 1).
        seed: of that split.
        tell: called with lines for the user, as a download may take long.

    Returns:
        The splits, with the class names of the data set, sorted.

    Raises:
        DataError: there is no whole copy and none can be downloaded, or it is damaged.
    """
    dataset = DATASETS[name]
    if folder is not None and not folder.is_dir():
        raise DataError(
            f"there is no folder {str(folder)!r} with a copy of {dataset.title}; check --dataset_path, or leave it "
            f"out for the cache folder ({str(cache_folder() / COPIES / name)!r})"
        )
    root = cache_folder() / COPIES / name if folder is None else folder
    require_copy(dataset, root, tell)
    if dataset.files is None:
        found = unpacked(name, dataset, root, cache_folder() / UNPACKED, tell)
    else:
        found = list_files(dataset, root)
        _require_inside(dataset, root, found)
    parts = {
        part: [ListedImage(path, (class_name,), path) for path, class_name in images]
        for part, images in found.items()
    }
    share = f", split by seed {seed}"
    if len(parts) > 1:
        share = f", which has no val, so val is {100 * val_fraction:g}% of train by seed {seed}"
    return splits_of(parts, dataset.title, Drawing(val_fraction, seed, share))


def _require_inside(dataset: NamedDataset, root: Path, found: dict[str, list[tuple[str, str]]]) -> None:
    """Refuse a copy whose lists name files elsewhere on this machine."""
    for images in found.values():
        for path, _ in images:
            if not Path(path).is_relative_to(root) or ".." in Path(path).parts[len(root.parts) :]:
                raise DataError(
                    f"the copy of {dataset.title} in {str(root)!r} names a file outside itself, {path!r}: it is not "
                    "the data set; use another copy"
                )
