"""Val split off a data set whose images have several classes or none, so that both sides have each class alike."""

from collections import defaultdict
from collections.abc import Sequence

from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator

_NO_CLASS = -1  # images without any class are divided as if that were one more class


def split_label_sets(
    labels: Sequence[int], label_sets: Sequence[Sequence[int]], fraction: float, seed: int
) -> list[int]:
    """Choose the images of val by iterative stratification (Sechidis et al., 2011).

    The class that has the fewest images left is divided first, as it leaves the least choice: each of its images goes
    to the side that still wants more of the class; where both want as many, to the one that wants more images at all.

    Args:
        labels: of each image, an index into ``label_sets``.
        label_sets: the classes that each label stands for; maybe none.
        fraction: share of each class that becomes val, in (0, 1). At least one image of a class is wanted on either
            side; a class of one image is train's.
        seed: of the order in which images are taken; the split depends on nothing else.

    Returns:
        Sorted indices of the images of val.
    """
    classes_of = [tuple(label_sets[label]) or (_NO_CLASS,) for label in labels]
    members: dict[int, list[int]] = defaultdict(list)
    for image in numpy_generator(derive_seed(seed, Purpose.SPLIT)).permutation(len(labels)).tolist():
        for name in classes_of[image]:
            members[name].append(image)
    left = {name: len(images) for name, images in members.items()}
    # What each side still wants, of every class and of all images together.
    val = {name: _wanted(count, fraction) for name, count in left.items()}
    train = {name: count - val[name] for name, count in left.items()}
    val_images = _wanted(len(labels), fraction)
    train_images = len(labels) - val_images
    chosen: dict[int, bool] = {}
    while left:
        rarest = min(left, key=lambda name: (left[name], name))
        for image in members[rarest]:
            if image in chosen:
                continue
            in_val = (val[rarest], val_images) > (train[rarest], train_images)
            chosen[image] = in_val
            side = val if in_val else train
            val_images, train_images = val_images - in_val, train_images - (not in_val)
            for name in classes_of[image]:
                side[name] -= 1
                left[name] -= 1
        left = {name: count for name, count in left.items() if count}
    return sorted(image for image, in_val in chosen.items() if in_val)


def _wanted(count: int, fraction: float) -> float:
    """How many of so many images val is to have; one at the least, and not all."""
    return min(max(1.0, fraction * count), count - 1.0)
