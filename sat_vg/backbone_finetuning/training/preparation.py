"""What all commands that run a model share: hardware, data, and explanations of lost images or memory."""

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.ranges import parse_bad_image_policy
from sat_vg.backbone_finetuning.data.checks.band_statistics import measure_bands
from sat_vg.backbone_finetuning.data.checks.duplicates import resolve_copies
from sat_vg.backbone_finetuning.data.checks.image_traits import describe_traits
from sat_vg.backbone_finetuning.data.checks.readable import (
    LEFT_OUT,
    READABLE_IMAGES,
    BadImage,
    Readable,
    require_readable,
)
from sat_vg.backbone_finetuning.data.loading.workers import why_loading_failed
from sat_vg.backbone_finetuning.data.reading.bands import ChosenBands, find_bands
from sat_vg.backbone_finetuning.data.reading.decoded_cache import keep_decoded, lay_out
from sat_vg.backbone_finetuning.data.reading.decoder import Decoder
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of, decoder_of_files
from sat_vg.backbone_finetuning.data.reading.levels import LevelsReader, find_levels
from sat_vg.backbone_finetuning.data.shards.source import in_shard_order
from sat_vg.backbone_finetuning.data.sources import table
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.models.networks.measuring import has_grouped_convolutions
from sat_vg.backbone_finetuning.models.networks.table import find_backbone
from sat_vg.backbone_finetuning.training.micro_batches import is_out_of_memory
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import (
    ConfigError,
    DataError,
    DeviceMemoryError,
    LoadingError,
    LostImageError,
)
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_device, choose_precision, set_up_process
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, BandFiles, Levels, Preprocessing
from sat_vg.backbone_finetuning.utils.printable import quote_some
from sat_vg.backbone_finetuning.utils.ranks import Ranks
from sat_vg.backbone_finetuning.utils.terminal import say

# What decides which images are train where they are not listed as such.
_DRAWING = ("val_split", "val_fraction", "seed", "split", "block_size", "group_column")
COMPUTED = "computed"  # in the cache folder: what cache_gib bounds, as it bounds the fetched shards


def choose_hardware(config: FinetuneConfig, ranks: Ranks | None = None) -> Precision:
    """Device and number formats, for one of ``ranks``.

    Raises:
        ConfigError: there is no such device, or no such backbone to put on it.
    """
    row = find_backbone(config.backbone)
    device = choose_device(config.device, ranks)
    settings = set_up_process(device, config.num_threads, config.keep_freed_memory, config.tf32)
    is_grouped = device.type == "cuda" and config.channels_last is None and has_grouped_convolutions(row)
    precision = choose_precision(
        device, config.mixed_precision, config.autocast_dtype, config.channels_last, is_grouped
    )
    return replace(precision, process=settings)


def find_images(config: FinetuneConfig) -> Splits:
    """List the images of the configuration, without opening them.

    Raises:
        DataError: there are none, or their classes do not fit together.
        ConfigError: ``num_classes`` is not their number of classes.
    """
    if config.dataset_path is None and config.dataset is None:
        say("no --dataset_path DIR was given: training on the built-in scenes, drawn by this program")
    splits = load_splits(config)
    if config.num_classes not in (None, len(splits.class_names)):
        raise ConfigError(
            f"num_classes = {config.num_classes}: the images have {len(splits.class_names)} classes; leave it out"
        )
    return splits


def split_otherwise(config: Mapping[str, Any], other: Mapping[str, Any], val_is_drawn: bool) -> str | None:
    """The first setting by which two trainings on the same images train on others of them, if there is one.

    Args:
        config: settings of a training as plain data; what is left out has its default.
        other: those of another one.
        val_is_drawn: whether the images' val is split off train, image by image.
    """
    first, second = ({**FinetuneConfig.defaults(), **one} for one in (config, other))
    is_drawn = val_is_drawn or any(one["split"] != "random" or one["group_column"] for one in (first, second))
    names = ("train_split", *(_DRAWING if is_drawn else ()))
    return next((name for name in names if first[name] != second[name]), None)


def are_same_images(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the settings of two trainings name the same images, however their path is written."""
    if first.get("dataset") != second.get("dataset"):
        return False
    places = []
    for config in (first, second):
        path = config.get("dataset_path")
        with suppress(ConfigError, OSError, ValueError, RuntimeError):  # of a foreign checkpoint
            path = expand_home(path).resolve() if isinstance(path, str) else path
        places.append(path)
    return bool(places[0] == places[1])


def tell_of_seen_images(config: FinetuneConfig, trained_with: Mapping[str, Any], splits: Splits) -> None:
    """Warn of starting weights that were trained on images which are val now.

    Args:
        config: of the training that begins.
        trained_with: configuration of the training that the weights come from; empty: not known.
        splits: of the images.
    """
    now = config.to_dict()
    if not trained_with or not are_same_images(now, trained_with):
        return
    name = split_otherwise(now, trained_with, splits.val_is_drawn)
    if name is not None:
        before = trained_with.get(name, FinetuneConfig.defaults()[name])
        say(
            f"warning: the starting weights were trained on these images with {name} = {before!r}, here it is "
            f"{now[name]!r}: they were trained on images that are val now, which flatters the result; use the same, "
            "or other weights"
        )


def tell_data(splits: Splits) -> None:
    """Say which images there are, and what is doubtful about their names and folders."""
    say(f"data: {splits.description}")
    for note in splits.notes:
        say(f"warning: {note}")
    for split, effect in ((splits.train, "nothing is learned of"), (splits.val, "the result says nothing of")):
        absent = split.absent_classes()
        if absent:
            them = "it" if len(absent) == 1 else "them"
            say(f"warning: {split.name} has no image of {quote_some(absent)}: {effect} {them}")


def load_splits(config: FinetuneConfig) -> Splits:
    """The images of the configuration, from whichever source it names; none of them is opened.

    Raises:
        DataError: there are none, or their classes do not fit together.
        ConfigError: a setting is for shards and there are none, or the other way round.
    """
    query = ImageQuery(
        path=config.dataset_path,
        dataset=config.dataset,
        train_split=config.train_split,
        val_split=config.val_split,
        val_fraction=config.val_fraction,
        seed=config.seed,
        split=config.split,
        block_size=config.block_size,
        group_column=config.group_column,
        allow_outside=config.allow_outside,
        label_separator=config.label_separator,
        outside_flag="--allow_outside true",
        shard_window=config.shard_window,
        cache_gib=config.cache_gib,
        tell=say,
    )
    return table.load_splits(query)


def choose_bands(config: FinetuneConfig, splits: Splits) -> ChosenBands | None:
    """Which bands of GeoTIFFs are read; None: images are read as 8-bit RGB.

    Raises:
        ConfigError: rasterio is not installed.
        DataError: there are no such bands.
    """
    if config.bands is None:
        return None
    chosen = find_bands(config.bands, splits.train.paths, config.nodata)
    say(chosen.description)
    return chosen


def decoder_of_config(config: FinetuneConfig, splits: Splits) -> Decoder:
    """How images are read before there is a model; missing values of GeoTIFFs are NaN. Raises as ``choose_bands``."""
    chosen = choose_bands(config, splits)
    if chosen is not None:
        return decoder_of_files(chosen.files)
    levels = choose_levels(config, splits)
    return RGB_DECODER if levels is None else LevelsReader(levels)


def choose_levels(config: FinetuneConfig, splits: Splits) -> Levels | None:
    """The levels by which deep RGB images become 8-bit ones; None: by their high byte.

    Raises:
        ConfigError: rasterio is not installed.
        DataError: the images are no deep RGB.
    """
    if config.rescale == "none":
        return None
    levels = find_levels(splits.train.paths)
    bounds = zip(RGB, levels.low, levels.high, strict=True)
    listed = ", ".join(f"{name} {low:.5g} to {high:.5g}" for name, low, high in bounds)
    say(f"levels (2nd to 98th percentile of the training images, spread over 0 to 255): {listed}")
    return levels


def with_levels(config: FinetuneConfig, splits: Splits, preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing with the levels of deep RGB images, where they are rescaled; weights keep their own.

    Raises as ``choose_levels``.
    """
    if config.rescale == "none":
        return replace(preprocessing, levels=None)
    if preprocessing.levels is not None:
        say("levels: those that the weights came with")
        return preprocessing
    return replace(preprocessing, levels=choose_levels(config, splits))


def for_bands(preprocessing: Preprocessing, chosen: ChosenBands | None) -> Preprocessing:
    """The starting weights' preprocessing for such files; weights that know their values keep their statistics.

    Raises:
        ConfigError: the weights were trained on other bands.
    """
    names = None if chosen is None else chosen.names
    if preprocessing.files is not None and names != preprocessing.bands:
        given = "unset" if names is None else ", ".join(names)
        places = zip(preprocessing.bands, preprocessing.files.bands, strict=True)
        there = ",".join(f"{name}={place}" for name, place in places)
        raise ConfigError(
            f"bands are {given}, and the starting weights were trained on GeoTIFFs with the bands "
            f"{', '.join(preprocessing.bands)}. Name the same, in this order (there they were --bands {there}), or "
            "start from other weights"
        )
    if chosen is None:
        return preprocessing
    are_known = preprocessing.files is not None and _have_same_units(preprocessing.files, chosen.files)
    return replace(preprocessing, files=chosen.files, scale=1.0 if are_known else Preprocessing.scale)


def _have_same_units(first: BandFiles, second: BandFiles) -> bool:
    return first.dtype == second.dtype and (first.scaling == "tagged") == (second.scaling == "tagged")


def with_band_statistics(config: FinetuneConfig, checked: Readable, preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing with mean and deviation of each band over the training images, where GeoTIFFs are read.

    Raises:
        DataError: a band tells nothing.
    """
    if preprocessing.files is None:
        return preprocessing
    if preprocessing.scale == 1.0:
        say("band statistics: those that the weights came with")
        return preprocessing
    decoder = decoder_of(preprocessing, marks_missing=True)
    found = measure_bands(
        checked.splits.train.paths, checked.contents, preprocessing.bands, decoder, computed_cache(config)
    )
    say(found.note)
    for warning in found.warnings:
        say(f"warning: {warning}")
    lines = zip(preprocessing.bands, found.mean, found.std, strict=True)
    say("mean and deviation: " + ", ".join(f"{name} {mean:.5g} ± {std:.5g}" for name, mean, std in lines))
    return replace(preprocessing, mean=found.mean, std=found.std, scale=1.0)


def require_images(
    config: FinetuneConfig, splits: Splits, decoder: Decoder = RGB_DECODER
) -> tuple[Splits, list[BadImage]]:
    """``check_images`` for commands that read the images once: the splits, and the images that were left out."""
    checked = check_images(config, splits, decoder)
    return checked.splits, checked.left_out


def check_images(config: FinetuneConfig, splits: Splits, decoder: Decoder = RGB_DECODER) -> Readable:
    """Decode every image once, search for copies, and say which images there are.

    Raises:
        DataError: images cannot be read, or the same ones lie in more than one split.
    """
    readable = require_readable(
        splits, *parse_bad_image_policy(config.on_bad_image), record=cache_folder() / READABLE_IMAGES, decoder=decoder
    )
    for bad in readable.left_out[:10]:
        say(f"left out {bad.path}: {bad.reason}")
    if len(readable.left_out) > 10:
        say(f"left out {len(readable.left_out) - 10} more; a training lists them in {LEFT_OUT} in log_dir")
    for note in describe_traits(readable.traits):
        say(f"note: {note}")
    settled, notes = resolve_copies(readable.splits, readable.contents, config.on_duplicates)
    tell_data(settled)
    for note in notes:
        say(note)
    return readable._replace(splits=in_shard_order(settled) if config.shard_window else settled)


def image_reader(
    config: FinetuneConfig, checked: Readable, decoder: Decoder = RGB_DECODER
) -> Callable[[str], Tensor]:
    """What reads train's and val's images: decoded anew, or if they are 8-bit RGB out of a file of decoded images.

    Raises:
        ConfigError: there is no room for what ``cache`` asks for.
    """
    if decoder != RGB_DECODER:
        if config.cache != "off":
            what = "the GeoTIFFs anew (only 8-bit RGB images are kept)" if config.bands else "and rescales them anew"
            say(f"decoded images: not kept, every epoch reads {what}")
        return decoder.read
    paths = [*checked.splits.train.paths, *checked.splits.val.paths]
    solves_probe = config.strategy == "linear_probe" and config.probe_solver == "exact"
    reader = keep_decoded(
        config.cache,
        lay_out(paths, checked.contents, checked.sizes),
        computed_cache(config),
        is_read_once=config.num_epochs == 1 or solves_probe,
    )
    if reader.note is not None:
        say(reader.note)
    return reader.read


def computed_cache(config: FinetuneConfig) -> BoundedCache:
    """Where decoded images and features are kept."""
    return BoundedCache(cache_folder() / COMPUTED, int(config.cache_gib * 2**30))


@contextmanager
def explained_losses(config: FinetuneConfig) -> Iterator[None]:
    """Turn the loss of an image, of memory, of a loading process or of the compiler into an error with the remedy."""
    try:
        yield
    except DataError as error:  # one that comes from a worker process carries that process's trace
        reason = str(error).rpartition("DataError: ")[2].strip()
        raise LostImageError(
            f"{reason}. It could be read when the training began; put it back, or remove it and begin anew with "
            "--resume never. The checkpoints from before are untouched"
        ) from None
    except (RuntimeError, MemoryError, AssertionError) as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                "the memory is too small for a step, however few images go through the model at once "
                f"({(str(error).splitlines() or ['no memory'])[0]}). Use a smaller --image_size or backbone, or "
                "freeze stages; the checkpoints are untouched"
            ) from error
        if config.compile and _comes_from_compiler(error):
            (reason, *_) = str(error).splitlines() or [type(error).__name__]
            raise ConfigError(
                f"compile = true: torch.compile failed on this network and image size ({reason}); --compile false "
                "trains the same without it"
            ) from error
        # torch has no class of its own for what happens to its workers
        lost = why_loading_failed(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            raise
        raise LoadingError(f"{lost}. The checkpoints are untouched: the same command goes on") from error


def _comes_from_compiler(error: BaseException) -> bool:
    # What compiled code raises has no class of its own: it asserts, in files of its own.
    frames = traceback.extract_tb(error.__traceback__)
    return any(f"torch{os.sep}{part}" in frame.filename for frame in frames for part in ("_dynamo", "_inductor"))
