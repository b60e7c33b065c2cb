"""Write images into shards, index existing shards, and check both."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing, lock_output
from sat_vg.backbone_finetuning.commands.shard.cli import ShardOptions
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.shards.cache import require_webdataset, store_of
from sat_vg.backbone_finetuning.data.shards.index import (
    INDEX,
    PARTS,
    SHARD_NAME,
    Sample,
    Shard,
    ShardIndex,
    read_index,
    write_index,
)
from sat_vg.backbone_finetuning.data.shards.source import WRITING, shard_cache
from sat_vg.backbone_finetuning.data.shards.tars import (
    PlannedShard,
    TarContent,
    hash_of_plan,
    label_set_of,
    plan_shards,
    scan_tar,
)
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.training.preparation import check_images, decoder_of_config, load_splits
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.json_reading import read_json
from sat_vg.backbone_finetuning.utils.printable import list_lines, quote_some
from sat_vg.backbone_finetuning.utils.safe_files import remove_unfinished, write_text
from sat_vg.backbone_finetuning.utils.terminal import progress, say

_USUAL_MIB = 256.0
_CLASSES = "classes.txt"
_MOST_CLASSES_BYTES = 2**24
# Common names of the parts of a data set, at the beginning of a tar file's name.
_PART_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def shard(options: ShardOptions) -> None:
    """Write shards, index those that there are, or check them, as the options say.

    Raises UserError where the options, the images or the shards cannot be used.
    """
    given = [name for name in ("data", "index", "check") if getattr(options, name) is not None]
    if len(given) != 1:
        raise ConfigError("say one of DATA, --index DIR and --check DIR: what to write, to index or to check")
    if options.index is not None:
        index_shards(options.index)
    elif options.check is not None:
        check_shards(options.check)
    else:
        write_shards(options)


def write_shards(options: ShardOptions) -> None:
    """Write the images into shards, or resume where an earlier call was killed or the disk was full."""
    if options.data is None or options.out is None:
        raise ConfigError("DATA needs --out OUT, the folder that shards are written to")
    webdataset = require_webdataset("shards are written")
    most_mib = options.shard_mib or (None if options.images_per_shard else _USUAL_MIB)
    own = ("data", "index", "check", "out", "images_per_shard", "shard_mib")
    shared = {name: value for name, value in vars(options).items() if name not in own}
    config = FinetuneConfig(dataset_path=options.data, **shared)
    folder, data = expand_home(options.out), expand_home(options.data)
    if not data.is_file() and folder.resolve().is_relative_to(data.resolve()):  # shards would be taken for a class
        raise ConfigError(f"--out {str(folder)!r} lies in the data set {str(data)!r}; choose one outside it")
    found = load_splits(config)
    splits = check_images(config, found, decoder_of_config(config, found)).splits
    most_bytes = None if most_mib is None else int(most_mib * 2**20)
    planned = plan_shards(splits, options.images_per_shard, most_bytes, options.seed)
    plan = hash_of_plan(planned, splits)
    with lock_output(folder):
        if (folder / INDEX).exists():
            if read_index(folder / INDEX).plan != plan:
                raise ConfigError(
                    f"{str(folder)!r} holds shards of other images, or written with other settings; choose another "
                    "--out, or remove it"
                )
            say(f"{folder} holds these shards already; nothing was written")
            return
        _start_or_resume(folder, plan)
        written = _write_all(folder, planned, splits, webdataset)
        index = ShardIndex(splits.class_names, splits.train.label_sets, plan, written)
        with _advising_to_resume(folder):
            write_index(folder / INDEX, index)
            (folder / WRITING).unlink()
    say(_table(index))
    say(f"written: {folder}; train on it with sat-vg train --dataset_path {folder}")


def index_shards(given: str) -> None:
    """Write ``shards.json`` of the tar files in a folder.

    Tar files whose names begin with ``train``, ``val`` or ``test`` belong to these splits; others to train, of which
    a training then splits val off. Labels are numbers, or the classes' names. The names that numbers stand for are
    the lines of ``classes.txt``; without it they are the numbers.
    """
    folder = expand_home(given)
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{given!r} holds no .tar files (compressed ones cannot be read at any place: unpack them)")
    if (folder / INDEX).exists():
        raise DataError(f"{given!r} has a {INDEX} already; remove it to make it anew")
    odd = [path.name for path in paths if not SHARD_NAME.fullmatch(path.name)]
    if odd:
        raise DataError(
            f"{given!r} holds tar files with odd names: {quote_some(odd)}; rename them to letters, digits, '_', '-' "
            "and '.'"
        )
    scanned = [scan_tar(path) for path in progress(paths, desc="reading shards", unit="shard")]
    names, label_of = _labels_of(folder, scanned)
    shards = dict(
        content.listed(path.name, _part_of(path.name), label_of.__getitem__)
        for path, content in zip(paths, scanned, strict=True)
    )
    index = ShardIndex(names, None, "", shards)
    with _advising_to_resume(folder):
        write_index(folder / INDEX, index)
    try:
        read_index(folder / INDEX)  # what was found in tar files of others may not be what an index may say
    except DataError:
        (folder / INDEX).unlink()
        raise
    say(_table(index))
    say(f"written: {folder / INDEX}; train on it with sat-vg train --dataset_path {folder}")


def check_shards(given: str) -> None:
    """Read all shards of an index, wherever they lie, and compare their bytes with it."""
    folder = expand_home(given)
    index = read_index(folder / INDEX if folder.is_dir() else folder)
    store = store_of(folder if folder.is_dir() else folder.parent, shard_cache(FinetuneConfig().cache_gib))
    problems = []
    for shard in progress(index.shards, desc="reading shards", unit="shard"):
        try:
            store.check(shard)
        except DataError as error:
            problems.append(str(error))
    say(_table(index))
    if problems:
        raise DataError(
            f"{len(problems)} of {len(index.shards)} shards are not as {INDEX} says:\n{list_lines(problems)}\n"
            "Fetch or write them again"
        )
    say(f"all {len(index.shards)} shards are as {INDEX} says")


def _start_or_resume(folder: Path, plan: str) -> None:
    """Record in the folder what is being written there; refuse a folder that holds something else."""
    note = folder / WRITING
    try:
        earlier = read_json(note).get("plan")
    except FileNotFoundError:
        earlier = None
    except (OSError, ValueError, AttributeError):
        earlier = ""
    in_the_way = sorted(path.name for path in folder.glob("*.tar"))
    if earlier != plan and in_the_way:
        whose = "of another writing, which has not ended" if earlier is not None else "of others"
        raise ConfigError(
            f"{str(folder)!r} holds tar files {whose}: {quote_some(in_the_way)}; choose another --out, or remove them"
        )
    remove_unfinished(folder, ("*.tar", INDEX, WRITING))
    if earlier == plan:
        say(f"going on in {folder}: {len(in_the_way)} shards are there")
    with _advising_to_resume(folder):
        write_text(note, json.dumps({"plan": plan}))


def _write_all(
    folder: Path, planned: Sequence[PlannedShard], splits: Splits, webdataset: ModuleType
) -> dict[Shard, tuple[Sample, ...]]:
    """Write the missing shards; returns what all of them hold, as read back."""
    written, label_sets = {}, splits.train.label_sets
    total = sum(len(shard.images) for shard in planned)
    with progress(total=total, desc="writing shards", unit="image") as bar, _advising_to_resume(folder):
        for shard in planned:
            try:
                there, samples = shard.read_back(folder, label_sets)
                bar.update(len(samples))
            except DataError:  # not there yet, or altered since
                shard.write(folder, webdataset, bar.update)
                there, samples = shard.read_back(folder, label_sets)
            written[there] = samples
    return written


def _advising_to_resume(folder: Path) -> AbstractContextManager[None]:
    remedy = "; make room there, and the same command goes on where it was"
    return explaining_writing(f"{str(folder)!r} cannot be written to", remedy)


def _part_of(name: str) -> str:
    first = re.split(r"[^A-Za-z]", name, maxsplit=1)[0].lower()
    return _PART_OF.get(first, "train")


def _labels_of(folder: Path, scanned: Sequence[TarContent]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the place of each label's class among them."""
    texts = sorted({label for shard in scanned for label in shard.labels})
    several = [text for text in texts if label_set_of(text) is not None]
    if several:
        raise DataError(
            f"{str(folder)!r}: shards hold images with the classes {several[0]}; where an image can have several "
            "classes, only who writes the shards can write their index"
        )
    given = _given_classes(folder)
    numbers = {text: int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 10}
    if len(numbers) < len(texts):
        names = given or tuple(texts)
        unknown = [text for text in texts if text not in names]
        if unknown:
            raise DataError(f"{str(folder)!r}: {_CLASSES} lacks the classes {quote_some(unknown)}, which shards hold")
        return _at_least_two(folder, names), {text: names.index(text) for text in texts}
    count = max(numbers.values()) + 1
    if given and len(given) < count:
        raise DataError(
            f"{str(folder)!r}: {_CLASSES} has {len(given)} lines, and shards hold the label {count - 1}, "
            "counted from 0"
        )
    if count > len(numbers) + 10_000:
        raise DataError(f"{str(folder)!r}: shards hold the label {count - 1}, which can be no number of a class")
    width = len(str(count - 1))
    return _at_least_two(folder, given or tuple(f"{number:0{width}d}" for number in range(count))), numbers


def _at_least_two(folder: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2:
        raise DataError(f"{str(folder)!r}: shards hold only the class {names[0]!r}; a classifier needs at least two")
    return names


def _given_classes(folder: Path) -> tuple[str, ...] | None:
    path = folder / _CLASSES
    if not path.is_file():
        return None
    if path.stat().st_size > _MOST_CLASSES_BYTES:
        raise DataError(f"{str(path)!r} is too large for a list of classes; one a line is meant")
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as UTF-8 text ({error})") from error
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{str(path)!r} names the class {twice[0]!r} twice; remove one")
    return names


def _table(index: ShardIndex) -> str:
    rows = []
    for part in PARTS:
        shards = index.of_part(part)
        if shards:
            size = sum(shard.num_bytes for shard in shards) / 2**20
            rows.append((part, len(shards), sum(map(len, shards.values())), f"{size:.1f}"))
    return text_table(("split", "shards", "images", "MiB"), rows)
