"""Images that a model is run over without training: a folder, a list in a file, a glob, or a single image.

A list is a text file with a path a line (``.txt``), or a table (``.csv``) with a column ``path`` and, if the images
are labelled, a column ``label``, or ``labels`` with several classes each; see ``image_tables``.
"""

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources.class_names import SEPARATOR, names_in, same_form
from sat_vg.backbone_finetuning.data.sources.image_tables import LIST_ENDINGS, Filling, read_image_table
from sat_vg.backbone_finetuning.data.sources.left_out import count_left_out, describe_left_out
from sat_vg.backbone_finetuning.data.sources.split_folders import role_of
from sat_vg.backbone_finetuning.data.sources.splits import IMAGE_ENDINGS
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home

_LABELS = Filling(("label",), "; without the column label no image needs one")


@dataclass(frozen=True)
class ImageList:
    """Images in order, with what is known of their classes.

    Attributes:
        paths: files to open: the folder as it was given, and what follows.
        labels: the class of each image by name; None: they are not labelled.
        description: one line for the terminal.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...] | None
    description: str

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, sorted; none where the images are not labelled."""
        return tuple(sorted(set(self.labels or ())))


def list_images(source: str, allow_outside: bool = False, separator: str = SEPARATOR) -> ImageList:
    """The images that a folder, a list, a glob or a path of one image stands for.

    Those of class folders are labelled by them: ``DIR/CLASS/…``, or ``DIR/train/CLASS/…`` with ``val`` or ``test``.

    Args:
        source: what the user typed.
        allow_outside: a list may name files outside its folder.
        separator: between the classes of an image in a table's column ``labels``.

    Raises:
        DataError: there is no image, or a list that cannot be read or names what it may not.
    """
    path = expand_home(source)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() in LIST_ENDINGS and path.exists():
        return _of_list(path, allow_outside, separator)
    left_out: Counter[str] = Counter()
    found = tuple(images_of(source, left_out))
    return ImageList(found, None, f"{_counted(len(found))}, not labelled{describe_left_out(left_out)}")


def images_of(source: str, left_out: "Counter[str] | None" = None) -> list[str]:
    """The images of a folder at any depth or of a glob (``**`` reaches any depth), sorted; of a file itself.

    Args:
        source: what the user typed.
        left_out: counts other files by their ending.

    Raises:
        DataError: there is none.
    """
    path = expand_home(source)
    left_out = Counter() if left_out is None else left_out
    if path.is_dir():
        return _images_below(path, left_out)
    if path.exists():
        return [str(path)]
    if not glob.has_magic(source):
        raise DataError(f"there is no file or folder {source!r}; check the path")
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - of patterns that begin anywhere
    files = [match for match in matches if not Path(match).is_dir()]
    found = [match for match in files if _is_image(match)]
    for match in set(files) - set(found):
        count_left_out(match, left_out)
    if not found:
        what, more = "only names that are no image's" if matches else "nothing", describe_left_out(left_out)
        raise DataError(f"{source!r} matches {what} (endings looked for: {' '.join(IMAGE_ENDINGS)}{more})")
    return found


def _of_folder(folder: Path) -> ImageList:
    left_out: Counter[str] = Counter()
    paths = _images_below(folder, left_out)
    others = describe_left_out(left_out)
    parts = [Path(path).relative_to(folder).parts for path in paths]
    depth = 1 if all(len(each) > 2 and role_of(each[0]) for each in parts) else 0
    if not all(len(each) > depth + 1 for each in parts):
        unlabelled = f"{_counted(len(paths))}, not labelled: some lie in no class folder{others}"
        return ImageList(tuple(paths), None, unlabelled)
    labels = tuple(same_form(each[depth]) for each in parts)
    return ImageList(tuple(paths), labels, _labelled(labels, "by folder") + others)


def _images_below(folder: Path, left_out: "Counter[str]") -> list[str]:
    """Paths of all images at any depth, sorted; links are followed, and each real folder is read once.

    Names that begin with a dot and ``__MACOSX`` are skipped, as in the training.
    """
    found: list[str] = []
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_list):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        shown = [name for name in files if not name.startswith(".")]
        found += [str(Path(place, name)) for name in shown if _is_image(name)]
        for name in shown:
            if not _is_image(name):
                count_left_out(name, left_out)
    if not found:
        looked_for = " ".join(IMAGE_ENDINGS) + describe_left_out(left_out)
        raise DataError(f"{str(folder)!r} holds no images at any depth (looked for {looked_for}); check the path")
    return sorted(found)


def _cannot_list(error: OSError) -> None:
    raise DataError(f"cannot list the folder {error.filename!r}: {error.strerror}; check its permissions") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _of_list(path: Path, allow_outside: bool, separator: str) -> ImageList:
    rows = read_image_table(path, ("label", "labels"), _LABELS, None if allow_outside else "--allow_outside").rows
    paths = tuple(row.path for row in rows)
    labels = tuple(_label_of(row.cells, separator) for row in rows if row.cells)
    if not labels:
        return ImageList(paths, None, f"{_counted(len(paths))}, not labelled")
    return ImageList(paths, labels, _labelled(labels, f"by {path.name}"))


def _label_of(cells: Mapping[str, str], separator: str) -> str:
    """The class of an image, or its classes with commas between."""
    if "label" in cells:
        return same_form(cells["label"])
    return ", ".join(sorted(set(map(same_form, names_in(cells["labels"], separator))) - {""})) or "(none)"


def _labelled(labels: Sequence[str], how: str) -> str:
    count = len(set(labels))
    return f"{_counted(len(labels))} in {count} {'class' if count == 1 else 'classes'} ({how})"


def _counted(count: int) -> str:
    return f"{count} {'image' if count == 1 else 'images'}"
