"""Classes and probabilities of images by a best_model.pt, printed as the images arrive."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing
from sat_vg.backbone_finetuning.commands.predict.cli import PredictOptions
from sat_vg.backbone_finetuning.commands.trained_models import advising_smaller_batches, load_ensemble
from sat_vg.backbone_finetuning.data.checks.image_traits import describe_decisions
from sat_vg.backbone_finetuning.data.reading.decoder import Traits
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.reading.threads import read_in_order
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.table import list_images
from sat_vg.backbone_finetuning.models.ensemble import Ensemble
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.prediction import LIKELIER_THAN_NOT
from sat_vg.backbone_finetuning.reports.overlays import draw_overlays
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError, StoppedError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_device, choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted, one_line, printable, shortened
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write
from sat_vg.backbone_finetuning.utils.terminal import say

STDIN = "-"
_TOP = 5
_WIDEST_CLASS = 40  # characters of a class name in the table
_DIGITS = 6  # of an image's number in the name of its overlay
_LONGEST_STEM = 80  # characters of an image's name in that of its overlay; file systems take 255 bytes


@dataclass(frozen=True)
class Answer:
    """The result for one image."""

    path: str  # of the image, as given or found
    error: str | None = None  # reason why it cannot be read; None if it can
    classes: tuple[tuple[str, float], ...] = ()  # names and probabilities, the likeliest first
    overlay: str | None = None  # path of its picture, if one was drawn
    # the image can have several classes, and is given those that are likelier than not; where none is, ``classes``
    # holds the likeliest all the same
    is_multi_label: bool = False

    def is_given(self, share: float) -> bool:
        """Whether the image is given a class of this probability."""
        return not self.is_multi_label or share >= LIKELIER_THAN_NOT

    def to_dict(self) -> dict[str, object]:
        """The answer as plain data."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        found = [
            {
                "class": name,
                "probability": round(share, 6),
                **({"given": self.is_given(share)} if self.is_multi_label else {}),
            }
            for name, share in self.classes
        ]
        return {
            "path": self.path,
            "predictions": found,
            **({"overlay": self.overlay} if self.overlay is not None else {}),
        }


def predict(options: PredictOptions) -> None:
    """Print the classes of images, or, where the options say so, write the map of a scene; raises UserError."""
    if options.out or options.size or options.stride or options.probabilities or not options.preview:
        from sat_vg.scenes.prediction import map_scene  # which stands above this package

        map_scene(options)
    else:
        predict_images(options)


def predict_images(options: PredictOptions) -> None:
    """Print the classes of images; those that cannot be read are reported, and the others go on.

    Raises UserError where the checkpoint or a setting cannot be used; at the end, if an image could not be read.
    """
    _refuse_earlier_overlays(options.overlays)
    ensemble = load_ensemble(options.checkpoint, options.ensemble, options.views, _note)
    model = ensemble.models[0]
    precision = choose_precision(choose_device(options.device), mixed_precision=False)
    for each in ensemble.models:
        precision.place_model(each)
    if ensemble.passes > 1:
        what = f"{counted(ensemble.num_views, 'view')} and {counted(len(ensemble.models), 'checkpoint')}"
        _note(f"probabilities averaged over {what}: {ensemble.passes} passes an image in place of 1")
    total = unreadable = 0
    traits: dict[str, Traits] = {}
    # Where the answers go to the terminal, they are the progress.
    bar = tqdm(unit="image", leave=False, disable=True if sys.stdout.isatty() else None)
    # A reader of standard output that has seen enough, as ``head`` has, ends the command quietly.
    with suppress(BrokenPipeError), bar, advising_smaller_batches(options.batch_size):
        if not options.json:
            say(_row("%", "class", "image", _width(model)))
        for group in path_groups(options.images, options.batch_size):
            for answer in _answers(ensemble, precision, group, options, total, traits):
                _show(answer, options, _width(model))
                unreadable += answer.error is not None
            total += len(group)
            bar.update(len(group))
        for text in describe_decisions(traits):
            _note(f"warning: {text}")
        if options.overlays is not None and total > unreadable:
            _note(f"overlays: {counted(total - unreadable, 'picture')} in {str(options.overlays)!r}")
        if not total:
            raise DataError("no image was named: standard input holds no path")
        if unreadable:
            raise DataError(_unanswered(unreadable, total))


def _unanswered(unreadable: int, total: int) -> str:
    if unreadable == total:
        return "the image cannot be read" if total == 1 else f"none of the {total} images can be read"
    answered = "the other was" if total - unreadable == 1 else "the others were"
    return f"{unreadable} of {total} images cannot be read; {answered} answered"


def _refuse_earlier_overlays(folder: str | None) -> None:
    """Raise ConfigError where pictures of an earlier call lie, which those of the same name would replace."""
    if not folder:
        return
    earlier = next(expand_home(folder).glob("[0-9]" * _DIGITS + "*_*.png"), None)
    if earlier is not None:
        raise ConfigError(
            f"--overlays {folder!r} holds pictures of an earlier call, such as {earlier.name}; choose another, or "
            "remove them"
        )


def path_groups(arguments: Sequence[str], size: int) -> Iterator[list[Answer]]:
    """The images that the arguments stand for, in order, in groups of up to ``size``.

    What comes on standard input is handed on at once, so that a program which writes a path and waits is answered.
    Only the path is known of these answers, or why a folder or glob stands for no image.
    """
    waiting: list[Answer] = []
    for argument in arguments:
        for sources in _lines_as_they_come() if argument == STDIN else [[argument]]:
            for source in sources:
                waiting += _expand(source)
                while len(waiting) >= size:
                    yield waiting[:size]
                    del waiting[:size]
            if argument == STDIN and waiting:
                yield waiting[:]
                waiting.clear()
    if waiting:
        yield waiting


def _expand(source: str) -> list[Answer]:
    try:
        images = list_images(ImageQuery(path=source))
        if images.left_out:
            _note(f"{source!r}{images.left_out}")
        return [Answer(path) for path in images.paths]
    except (DataError, ValueError) as error:  # ValueError: a NUL in a path
        return [Answer(source, error=str(error))]


def _lines_as_they_come() -> Iterator[list[str]]:
    """Lines of standard input, as many at a time as there are; waits for the first of them."""
    if sys.stdin is None:  # the process was started without one
        return
    descriptor, rest = sys.stdin.fileno(), b""
    while block := _read_some(descriptor):
        *lines, rest = (rest + block).split(b"\n")
        yield [os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip()]
    yield [os.fsdecode(rest)] if rest.strip() else []


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2**16)  # unlike Python's own reading it does not wait for a full buffer
    except OSError as error:
        raise DataError(f"standard input cannot be read ({error.strerror}); give it a file or a pipe") from error


def _note(text: str) -> None:
    """Print a line on standard error: standard output holds answers alone."""
    tqdm.write(printable(text), file=sys.stderr)


def _read(
    model: FineTuneModel, group: Sequence[Answer], batch_size: int, traits: dict[str, Traits] | None = None
) -> list[Tensor | str]:
    """The images of a group as a model takes them, or the reasons why they cannot be read; fills in their traits."""
    known = [each.path for each in group if each.error is None]
    decoder = decoder_of(model.preprocessing)
    read = read_in_order(known, model.preprocessing.geometry(), batch_size, decoder, traits)
    return [each.error if each.error is not None else next(read) for each in group]


def _probabilities(
    ensemble: Ensemble, precision: Precision, group: Sequence[Answer], images: Tensor, batch_size: int
) -> Tensor:
    """``[B, num_classes]``, averaged; ``images`` are the group's as the first model takes them."""
    found, first = [], ensemble.models[0].preprocessing
    for model in ensemble.models:
        own = images
        if model.preprocessing != first:  # another size, or other ways of resizing and reading
            readable = [each for each in _read(model, group, batch_size) if isinstance(each, Tensor)]
            if len(readable) != len(images):
                raise StoppedError("an image changed while it was read; start again")
            own = torch.stack(readable)
        values = precision.place_images(model.preprocessing.normalise(own.to(precision.device)))
        found.append(model.predict_probabilities(values, ensemble.num_views).cpu())
    return found[0] if len(found) == 1 else torch.stack(found).mean(0)


def _answers(
    ensemble: Ensemble,
    precision: Precision,
    group: Sequence[Answer],
    options: PredictOptions,
    number: int,
    traits: dict[str, Traits],
) -> list[Answer]:
    """Results for a group of images; ``number`` images came before it, and ``traits`` takes theirs."""
    model = ensemble.models[0]
    contents = _read(model, group, options.batch_size, traits)
    pictures = [each for each in contents if isinstance(each, Tensor)]
    if not pictures:
        return [Answer(each.path, error=str(why)) for each, why in zip(group, contents, strict=True)]
    images = torch.stack(pictures)
    probabilities = _probabilities(ensemble, precision, group, images, options.batch_size)
    if not probabilities.isfinite().all():
        raise StoppedError("the model's probabilities are no numbers: its weights are broken; use another checkpoint")
    heats = None
    if options.overlays:
        normalised = precision.place_images(model.preprocessing.normalise(images.to(precision.device)))
        heats = model.explain(normalised, probabilities.argmax(1)).cpu()
    answers, row = [], 0
    for place, (each, content) in enumerate(zip(group, contents, strict=True)):
        if isinstance(content, str):
            answers.append(Answer(each.path, error=content))
            continue
        classes, overlay = likeliest(model, probabilities[row], options.top), None
        if heats is not None and options.overlays is not None:
            overlay = _overlay_path(options.overlays, number + place, each.path)
            _draw(overlay, model.preprocessing.pictures(images[row][None])[0], heats[row], each.path, classes)
        shown = None if overlay is None else str(overlay)
        answers.append(Answer(each.path, None, classes, shown, model.task == "multi_label"))
        row += 1
    return answers


def likeliest(model: FineTuneModel, probabilities: Tensor, top: int | None = None) -> tuple[tuple[str, float], ...]:
    """Names and probabilities of an image's likeliest classes; of several an image those above one half, or one.

    ``top`` is the most that are wanted; None: five, or of several classes an image all.
    """
    most = top or (model.num_classes if model.task == "multi_label" else _TOP)
    shares, indices = probabilities.topk(min(most, model.num_classes))
    found = [
        (model.class_names[index], share) for index, share in zip(indices.tolist(), shares.tolist(), strict=True)
    ]
    if model.task == "multi_label":
        found = [pair for place, pair in enumerate(found) if place == 0 or pair[1] >= LIKELIER_THAN_NOT]
    return tuple(found)


def _overlay_path(folder: str, number: int, image: str) -> Path:
    """A file name that is unique and valid on all file systems."""
    stem = "".join(c if c.isprintable() and c not in '\\/:*?"<>|' else "_" for c in Path(image).stem)
    stem = stem.encode("utf-8", "replace")[:_LONGEST_STEM].decode("utf-8", "ignore")
    return expand_home(folder) / f"{number + 1:0{_DIGITS}d}_{stem}.png"


def _draw(path: Path, image: Tensor, heat: Tensor, source: str, classes: Sequence[tuple[str, float]]) -> None:
    title = "\n".join(f"{shortened(name, 30)} {100 * share:.1f} %" for name, share in classes[:2])
    pixels = image.permute(1, 2, 0).contiguous().numpy()[None]
    heading = f"{shortened(Path(source).name, 50)}: Grad-CAM of {shortened(classes[0][0], 30)}"
    figure = draw_overlays(pixels, heat.numpy()[None], [title], heading)
    remedy = "; make room there or choose other --overlays"
    with explaining_writing(f"{str(path)!r} cannot be written", remedy), atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _show(answer: Answer, options: PredictOptions, width: int) -> None:
    if options.json:
        say(json.dumps(answer.to_dict()), ends_with_reader=True)
    elif answer.error is not None:
        _note(f"cannot read {answer.path!r}: {answer.error}")
    else:
        where = one_line(answer.path)
        for name, share in answer.classes:
            shown = one_line(name) if answer.is_given(share) else f"({one_line(name)})"
            say(_row(f"{100 * share:.1f}", shortened(shown, width), where, width), ends_with_reader=True)
            where = ""


def _row(share: str, name: str, path: str, width: int) -> str:
    return f"{share:>5}  {name:<{width}}  {path}".rstrip()


def _width(model: FineTuneModel) -> int:
    brackets = 2 * (model.task == "multi_label")  # around a class that is shown though it is not given
    return min(_WIDEST_CLASS, brackets + max(len("class"), *(len(one_line(name)) for name in model.class_names)))
