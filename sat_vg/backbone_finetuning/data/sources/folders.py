"""Images in folders, of a glob, or a single one."""

import glob
from collections import Counter
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources.class_folders import (
    IMAGE_ENDINGS,
    count_left_out,
    describe_left_out,
    images_below,
    is_image,
)
from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.data.sources.source import ImageList, ImageQuery, Source, describe_images
from sat_vg.backbone_finetuning.data.sources.split_folders import role_of
from sat_vg.backbone_finetuning.data.sources.splits import Splits, load_class_folders
from sat_vg.backbone_finetuning.utils.errors import DataError


class Folders(Source):
    """Class folders for a training; any images to run a model over. The source of whatever no other one takes.

    Images are labelled by class folders, ``DIR/CLASS/…`` or ``DIR/train/CLASS/…`` with ``val`` or ``test``, if each
    of them lies in one.
    """

    def takes(self, query: ImageQuery) -> bool:
        """See ``Source``."""
        return query.path is not None

    def load_splits(self, query: ImageQuery) -> Splits:
        """See ``Source``."""
        return load_class_folders(
            query.place,
            train_split=query.train_split,
            val_split=query.val_split,
            val_fraction=query.val_fraction,
            seed=query.seed,
        )

    def list_images(self, query: ImageQuery) -> ImageList:
        """See ``Source``; a glob's ``**`` reaches any depth."""
        left_out: Counter[str] = Counter()
        if query.place.is_dir():
            paths = images_below(query.place, left_out)
            labels = _class_folders(query.place, paths)
            how = " (by folder)" if labels else ": some lie in no class folder"
        else:
            paths, labels, how = _files_of(query, left_out), None, ""
        others = describe_left_out(left_out)
        return ImageList(tuple(paths), labels, describe_images(labels, len(paths), how) + others, others)


FOLDERS = Folders()


def _class_folders(folder: Path, paths: list[str]) -> tuple[str, ...] | None:
    """The class folder of each image; None where some lie in none."""
    parts = [Path(path).relative_to(folder).parts for path in paths]
    depth = 1 if all(len(each) > 2 and role_of(each[0]) for each in parts) else 0
    if not all(len(each) > depth + 1 for each in parts):
        return None
    return tuple(same_form(each[depth]) for each in parts)


def _files_of(query: ImageQuery, left_out: "Counter[str]") -> list[str]:
    """The images that a glob matches, sorted; a file itself, whatever its name.

    Raises:
        DataError: there is none.
    """
    if query.place.exists():
        return [str(query.place)]
    assert query.path is not None
    if not glob.has_magic(query.path):
        raise DataError(f"there is no file or folder {query.path!r}; check the path")
    matches = sorted(glob.glob(str(query.place), recursive=True))  # noqa: PTH207 - of patterns that begin anywhere
    files = [match for match in matches if not Path(match).is_dir()]
    found = [match for match in files if is_image(match)]
    for match in set(files) - set(found):
        count_left_out(match, left_out)
    if not found:
        what, more = "only names that are no image's" if matches else "nothing", describe_left_out(left_out)
        raise DataError(f"{query.path!r} matches {what} (endings looked for: {' '.join(IMAGE_ENDINGS)}{more})")
    return found
