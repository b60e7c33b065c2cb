"""Extract features of images with a best_model.pt into one file; a stopped extraction is resumed."""

import glob
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sat_vg.backbone_finetuning.commands.extract.cli import ExtractOptions
from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing, lock_output
from sat_vg.backbone_finetuning.commands.trained_models import advising_smaller_batches, load_model, model_file
from sat_vg.backbone_finetuning.data.checks.image_traits import describe_decisions
from sat_vg.backbone_finetuning.data.features.files import (
    Features,
    identity_of,
    reading_lines,
    require_format,
    write_features,
)
from sat_vg.backbone_finetuning.data.features.spool import Spool, hash_of_images
from sat_vg.backbone_finetuning.data.reading.decoded_cache import in_words
from sat_vg.backbone_finetuning.data.reading.decoder import Traits
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.reading.threads import read_in_order
from sat_vg.backbone_finetuning.data.sources.source import ImageList, ImageQuery
from sat_vg.backbone_finetuning.data.sources.table import list_images
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath
from sat_vg.backbone_finetuning.data.windows.places import columns_of_windows, list_windows, systems_of
from sat_vg.backbone_finetuning.evaluation.nearest_neighbours import knn_accuracy
from sat_vg.backbone_finetuning.models.artifact import current_versions
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.freezing import check_stage_names
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError, InterruptedRun, StoppedError, WriteError
from sat_vg.backbone_finetuning.utils.file_stamps import sha256_of
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_device, choose_precision, set_up_process
from sat_vg.backbone_finetuning.utils.safe_files import remove_unfinished
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest
from sat_vg.backbone_finetuning.utils.terminal import say

POOLED = "pooled"
_MAX_FOR_AUTO_KNN = 50_000  # about a minute on a few cores; the time grows with the square
_NEIGHBOURS = 20
_LISTED = 10


class Computation:
    """The features of images on one device: of the stages whose maps are wanted, or the pooled vector.

    ``columns`` are the shapes of one image's entry, by name. Raises ConfigError where there is no such stage.
    """

    def __init__(self, model: FineTuneModel, stages: Sequence[str] | None, precision: Precision) -> None:
        self.preprocessing, self.precision = model.preprocessing, precision
        self._compute: Callable[[Tensor], Mapping[str, Tensor]]
        if stages is None:
            precision.place_model(model)
            self._compute = lambda images: {POOLED: model.forward_pooled(images)}
        else:
            check_stage_names(stages, [stage.name for stage in model.stages if stage.gives_map], "--stages")
            extractor = model.get_feature_extractor(list(stages))
            precision.place_model(extractor)
            self._compute = extractor
        size = self.preprocessing.image_size
        blank = self(torch.zeros(1, len(self.preprocessing.bands), size, size, dtype=torch.uint8))
        self.columns = {name: tuple(value.shape[1:]) for name, value in blank.items()}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images ``[B, C, H, W]``, not normalised → float32 ``[B, …]`` on the CPU, by column."""
        normalised = self.preprocessing.normalise(images.to(self.precision.device))
        with self.precision.autocast():
            values = self._compute(self.precision.place_images(normalised))
        return {name: value.float().cpu() for name, value in values.items()}


def extract_features(options: ExtractOptions) -> Path:
    """Extract features into a file, and say what it holds and how it is read.

    Raises:
        UserError: the checkpoint, the images or a setting cannot be used, or the file cannot be written.
        InterruptedRun: a signal came; what was done is kept.
    """
    target = expand_home(options.out)
    require_format(target)
    if target.is_dir():
        raise ConfigError(f"--out {options.out!r} is a folder; name a file in it")
    query = ImageQuery(
        path=options.images, allow_outside=options.allow_outside, label_separator=options.label_separator
    )
    images = list_images(query)
    if options.size:
        images = list_windows(images.paths, options.size, options.stride or options.size)
    elif options.stride:
        raise ConfigError("--stride is for scenes: say how large their windows are with --size")
    if options.knn and (options.stages or len(images.class_names) < 2):
        raise ConfigError("--knn true: needs pooled vectors, so no --stages, and labelled images of two classes")
    checkpoint = model_file(options.checkpoint)
    model = load_model(checkpoint)
    device = choose_device(options.device)
    set_up_process(device, num_threads=None, keeps_freed_memory=None, tf32=False)
    precision = choose_precision(device, options.mixed_precision)
    computation = Computation(model, options.stages, precision)
    say(f"model: {model.backbone} at {model.preprocessing.image_size} pixels, on {precision}")
    say(f"images: {images.description}")
    digest = sha256_of(checkpoint)  # of all that the numbers depend on besides the images
    digest.update(json.dumps([computation.columns, options.dtype, str(precision.autocast_dtype)]).encode())
    settings = digest.hexdigest()
    spool = Spool(target.with_name(f"{target.name}.partial"), computation.columns, options.dtype, settings)
    busy = f"{str(target)!r} is being written by another extraction: "
    if target.exists():
        _require_same(target, f"{settings}:{hash_of_images(images)}")
        if spool.folder.exists():  # of a run that was killed before it could remove it
            with lock_output(spool.folder, busy):
                spool.remove()
        say(f"{target} holds these features already: nothing was left to do")
        return target
    _require_room(target, spool, 2 * len(images) * spool.row_bytes)
    remedy = f". What was done is kept in {spool.folder.name!r} beside it: make room, and the same command goes on"
    writing = explaining_writing(f"{str(target)!r} cannot be written", remedy)
    with lock_output(spool.folder, busy), advising_smaller_batches(options.batch_size), writing:
        try:
            remove_unfinished(target.parent, [glob.escape(target.name)])
            spool.open(images)
            _fill(spool, images, computation, options)
            if not spool.progress.rows:
                (_, reason), *_ = spool.progress.left_out
                raise DataError(f"none of the {spool.progress.done} images can be read (the first: {reason})")
            features = _features(options, model, spool, images)
            write_features(target, features)
            spool.remove()
        finally:
            spool.close()
    _report(target, spool, images, features.about)
    return target


def _require_same(target: Path, identity: str) -> None:
    """Refuse to overwrite a file that holds anything but these features."""
    found = identity_of(target)
    if found != identity:
        what = "other features (other weights, stages, number formats or images)" if found else "something else"
        raise ConfigError(f"{str(target)!r} exists and holds {what}: choose another --out, or remove it")


def _require_room(target: Path, spool: Spool, needed: int) -> None:
    """Refuse to start on too small a disk, which holds the numbers twice while the file is put together."""
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    spooled = sum(path.lstat().st_size for path in spool.folder.glob("*.raw"))
    free = shutil.disk_usage(folder).free
    if free + spooled < needed:
        raise WriteError(
            f"{str(target)!r} needs {in_words(needed)} while it is made, twice its size; free there are "
            f"{in_words(free)}. Make room, choose another --out, --dtype float16, or fewer --stages"
        )


def _fill(spool: Spool, images: ImageList, computation: Computation, options: ExtractOptions) -> None:
    """Compute the rows that the spool lacks; whatever ends this, the computed rows are saved."""
    done = spool.progress.done
    if done:
        say(f"going on behind image {done} of {len(images)}")
    size = options.batch_size
    preprocessing = computation.preprocessing
    traits: dict[str, Traits] = {}
    stream = read_in_order(images.paths[done:], preprocessing.geometry(), 2 * size, decoder_of(preprocessing), traits)
    bar = tqdm(total=len(images), initial=done, desc="images", unit="image", leave=False, disable=None)
    try:
        with InterruptRequest() as stop, bar:
            while batch := list(islice(stream, size)):
                _append(spool, images, batch, computation, options)
                bar.update(len(batch))
                if stop.requested:
                    place = f"behind image {spool.progress.done} of {len(images)}"
                    raise InterruptedRun(f"stopped by {stop.name} {place}; the same command goes on", stop.number)
    except BaseException:
        with suppress(OSError):  # the error that ended the extraction matters more
            spool.save()
        raise
    spool.save()
    for text in describe_decisions(traits):
        say(f"warning: {text}")


def _append(
    spool: Spool, images: ImageList, batch: list[Tensor | str], computation: Computation, options: ExtractOptions
) -> None:
    """Add a batch's features to the spool; ``batch`` holds images, or reasons why one cannot be read."""
    reasons = [each if isinstance(each, str) else None for each in batch]
    if options.on_bad_image == "error":
        for place, reason in enumerate(reasons, start=spool.progress.done):
            if reason is not None:
                raise _bad_image(images, spool.progress.done, place, reason)
    pictures = [each for each in batch if isinstance(each, Tensor)]
    if pictures:
        values = _in_format(computation(torch.stack(pictures)), options.dtype)
    else:
        values = {name: np.empty((0, *shape), options.dtype) for name, shape in spool.columns.items()}
    spool.append(values, images, reasons)


def _bad_image(images: ImageList, done: int, place: int, reason: str) -> DataError:
    kept = f"; the {done} of {len(images)} before it are done and kept" if done else ""
    return DataError(
        f"cannot read the image {images.paths[place]!r}: {reason}. Mend or remove it and run the same command again, "
        f"or leave such images out with --on_bad_image skip{kept}"
    )


def _in_format(values: dict[str, Tensor], dtype: str) -> dict[str, np.ndarray]:
    """Values in the number format of the file. Raises StoppedError where one does not fit it."""
    arrays = {}
    for name, value in values.items():
        highest = value.abs().max().item()
        array = value.to(getattr(torch, dtype))
        if not array.isfinite().all():
            remedy = (
                "use --dtype float32" if np.isfinite(highest) else "the weights are broken; use another checkpoint"
            )
            raise StoppedError(f"{name} holds {highest:g}, which is no number of {dtype}: {remedy}")
        arrays[name] = array.numpy()
    return arrays


def _about(
    options: ExtractOptions, model: FineTuneModel, spool: Spool, images: ImageList, labels: list[int] | None
) -> dict[str, Any]:
    return {
        "format": "sat_vg.features",
        "identity": f"{spool.progress.settings}:{spool.progress.seen}",
        "checkpoint": options.checkpoint,
        "weights": sha256_of(model_file(options.checkpoint)).hexdigest(),
        "backbone": model.backbone,
        "model_classes": model.class_names,
        "preprocessing": model.preprocessing.to_dict(),
        "images": options.images,
        "columns": spool.columns,
        "scenes": systems_of(images.paths),
        "dtype": options.dtype,
        "class_names": images.class_names,
        "left_out": [[images.paths[place], reason] for place, reason in spool.progress.left_out],
        "knn": _knn(options, spool, labels),
        "versions": current_versions(),
    }


def _knn(options: ExtractOptions, spool: Spool, labels: list[int] | None) -> dict[str, float] | None:
    """The nearest neighbours' accuracy with its settings; None where it was not wanted or is undefined."""
    if labels is None or POOLED not in spool.columns or len(set(labels)) < 2 or options.knn is False:
        return None
    if options.knn is None and len(labels) > _MAX_FOR_AUTO_KNN:
        say(f"nearest neighbours: left out for {len(labels)} images; --knn true computes them")
        return None
    device = choose_device(options.device)
    accuracy = knn_accuracy(spool.arrays()[POOLED], torch.tensor(labels), _NEIGHBOURS, device=device)
    return {"accuracy": accuracy, "k": min(_NEIGHBOURS, len(labels) - 1), "temperature": 0.07}


def _features(options: ExtractOptions, model: FineTuneModel, spool: Spool, images: ImageList) -> Features:
    """The rows of the spool with the paths and labels of their images."""
    left_out = {place for place, _ in spool.progress.left_out}
    kept = [place for place in range(len(images)) if place not in left_out]
    paths, labels = [images.paths[place] for place in kept], None
    if images.labels is not None:
        numbers = {name: number for number, name in enumerate(images.class_names)}
        labels = [numbers[images.labels[place]] for place in kept]
    columns = {**spool.arrays(), **columns_of_windows(paths)}
    return Features(columns, paths, labels, images.class_names, _about(options, model, spool, images, labels))


def _report(target: Path, spool: Spool, images: ImageList, about: Mapping[str, Any]) -> None:
    """Print what the file holds, how to read it, and the nearest neighbours' accuracy."""
    left_out = about["left_out"]
    for path, reason in left_out[:_LISTED]:
        say(f"left out {path!r}: {reason}")
    if len(left_out) > _LISTED:
        say(f"left out {len(left_out) - _LISTED} more; the file's 'about' lists them")
    rows = spool.progress.rows
    held = [f"{name} {about['dtype']} {[rows, *shape]}" for name, shape in spool.columns.items()]
    in_columns = target.suffix == ".parquet"
    held += ["window, centre"] if isinstance(images.paths[0], WindowPath) else []
    held += ["path" if in_columns else "paths"]
    held += [("label" if in_columns else "labels")] if images.labels else []
    say(f"written: {target} ({target.stat().st_size / 1e6:.1f} MB) with {', '.join(held)}")
    say("to read it:\n  " + "\n  ".join(reading_lines(target, spool.columns, rows)))
    if about["knn"]:
        say(
            f"nearest neighbours: {100 * about['knn']['accuracy']:.2f} % of {rows} images have the class that their "
            f"{about['knn']['k']} nearest others by cosine vote for\n  (leave-one-out; votes weighted by "
            "exp(cosine / 0.07) as in Wu et al., 2018; no classifier is involved)"
        )
