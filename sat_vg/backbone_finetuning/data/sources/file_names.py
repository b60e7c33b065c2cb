"""Images in class folders that seem by their names to be none of their class: masks, altered copies of others."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence

_LAYERS = frozenset(
    {
        "mask", "label", "lbl", "annotation", "annot", "gt", "groundtruth", "segmentation", "segmentationclass",
        "segmentationobject",
    }
)  # fmt: skip
_MASK = re.compile(r"(.+?)[ _.-]+(?:mask|label|lbl|gt|seg|segmentation|annotation)s?", re.IGNORECASE)
_ALTERED = re.compile(
    r"(.+?)[ _.-]+(?:aug|augment|augmented|rot|rotate|rotated|rotation|flip|flipped|hflip|vflip|mirror|mirrored)"
    r"[ _.-]*\d{0,4}",
    re.IGNORECASE,
)
_LEAST = 2  # of one such name nothing follows


def check_names(classes: Mapping[str, Sequence[str]], val_is_drawn: bool) -> Iterator[str]:
    """A line for each kind of images that seem to be no images of their class.

    Args:
        classes: paths by class.
        val_is_drawn: whether val is drawn of these images, so that copies may come to lie on both sides.
    """
    yield from _layers(classes)
    paths = [path for several in classes.values() for path in several]
    if masks := _beside(paths, _MASK):
        yield (
            f"{len(masks)} images have names as masks of the images beside them have, such as {masks[0]!r}, and "
            "are read as images of the class; if they are masks, move them elsewhere"
        )
    if val_is_drawn and (altered := _beside(paths, _ALTERED)):
        yield (
            f"{len(altered)} images seem by their names to be altered copies of images beside them, such as "
            f"{altered[0]!r}; where an image is in train and its copy in val, the result is flattered. Remove "
            "them, as a training augments by itself, or keep them together by a table with --group_column"
        )


def _layers(classes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line for each class that is called as masks are, and whose files are called as those of another class."""
    stems = {name: {_stem(path)[1] for path in paths} for name, paths in classes.items()}
    for name, own in stems.items():
        word = re.sub(r"[\s_-]+", "", name.casefold())
        if word not in _LAYERS and word.removesuffix("s") not in _LAYERS:
            continue
        other = max((one for one in stems if one != name), key=lambda one: len(own & stems[one]), default=name)
        if other != name and 2 * len(own & stems[other]) > len(own):
            yield (
                f"the folder {name!r} is read as a class, and its files are called as those of {other!r}: if they "
                "are masks or labels of these images, this is a data set for segmentation, without class folders"
            )


def _beside(paths: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """Images that are called as another one in the same folder with a word of the pattern behind it."""
    stems = list(map(_stem, paths))
    known = set(stems)
    found = [
        path
        for path, (folder, stem) in zip(paths, stems, strict=True)
        if (match := pattern.fullmatch(stem)) and (folder, match[1]) in known
    ]
    return found if len(found) >= _LEAST else []


def _stem(path: str) -> tuple[str, str]:
    """A file's folder, and its name without the ending; strings, as there may be a million of them."""
    folder, _, name = path.rpartition(os.sep)
    return folder, name.rpartition(".")[0]
