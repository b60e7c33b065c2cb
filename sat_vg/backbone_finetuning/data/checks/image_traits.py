"""What images say of their values beside the values, and in what the images of a data set differ in that."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sat_vg.backbone_finetuning.data.reading.decoder import Traits
from sat_vg.backbone_finetuning.utils.preprocessing import RGB
from sat_vg.backbone_finetuning.utils.printable import counted, one_line

_LISTED = 3
_FEW_LEVELS = 64


def describe_traits(traits: Mapping[str, Traits]) -> list[str]:
    """What deserves a line about the files of a data set, by their traits by path: in what they differ, odd alpha."""
    scaling = _differing(traits, lambda one: one.scaling, "scale and offset differ", _scaling)
    how = (
        "they are applied, so the model sees value x scale + offset"
        if any(one.is_scaled for one in traits.values())
        else "in 8-bit RGB they are not applied, so the same field may look different: --rescale percentile, or "
        "--bands, applies them"
    )
    return [
        *_differing(traits, lambda one: one.depth, "the depth of pixels differs", str),
        *_differing(traits, lambda one: one.nodata, "nodata values differ", _nodata),
        *_differing(traits, lambda one: one.names, "bands of the same numbers have different descriptions", _names),
        *(f"{text}; {how}" for text in scaling),
        *_about_alpha(traits, is_training=True),
        *_about_levels(traits),
        *_about_fills(traits, is_training=True),
        *_about_blank(traits),
        *_about_shown(traits, is_training=True),
        *_about_order(traits),
        *_about_frames(traits),
    ]


def describe_decisions(traits: Mapping[str, Traits]) -> list[str]:
    """What was decided about images that a trained model is given, by path, where another reading is possible."""
    return [
        *_about_alpha(traits, is_training=False),
        *_about_fills(traits, is_training=False),
        *_about_shown(traits, is_training=False),
        *_about_frames(traits),
    ]


def _about_alpha(traits: Mapping[str, Traits], is_training: bool) -> Iterator[str]:
    if soft := _with(traits, lambda one: one.alpha == "soft"):
        yield (
            f"{_have(soft)} an alpha channel with values other than 0 and full ({_paths(soft)}); colours are "
            "composited on black, so they are darker there. If it is no transparency, remove that channel"
        )
    if ignored := _with(traits, lambda one: one.alpha == "ignored"):
        yield (
            f"{_have(ignored)} a band marked as alpha whose values are no transparency, as near infrared often is "
            f"({_paths(ignored)}); it is left out, and the colours are as stored"
            + (". --bands reads it" if is_training else "")
        )


def _about_levels(traits: Mapping[str, Traits]) -> Iterator[str]:
    deep = _with(traits, lambda one: one.levels > 0)
    most = max((traits[path].levels for path in deep), default=_FEW_LEVELS)
    if most < _FEW_LEVELS:
        depth = " and ".join(sorted({traits[path].depth for path in deep}))
        yield (
            f"{_have(deep)} {depth} values of which no more than {most} of 256 grey levels are left as 8-bit "
            f"RGB ({_paths(deep)}), as the small values of a large range; --rescale percentile spreads them, and "
            "--bands reads them as they are"
        )


def _about_fills(traits: Mapping[str, Traits], is_training: bool) -> Iterator[str]:
    for value in sorted({value for one in traits.values() for value in one.fills}):
        paths = [path for path, one in traits.items() if value in one.fills]
        yield (
            f"{_have(paths)} the value {value}, far from all other values and not declared as nodata "
            f"({_paths(paths)}); it is taken for missing. Declare it in the files"
            + (f", or by --nodata {value}" if is_training else "")
        )


def _about_blank(traits: Mapping[str, Traits]) -> Iterator[str]:
    blank = sorted(_with(traits, lambda one: one.blank > 0), key=lambda path: -traits[path].blank)
    if not blank:
        return
    listed = ", ".join(f"{traits[path].blank} % of {path!r}" for path in blank[:_LISTED])
    has_bands = any(traits[path].nodata for path in blank)  # chosen by number, and not the three of --rescale
    where, counts, remedy = (
        ("all chosen bands", "band statistics", "by --nodata 0")
        if has_bands
        else ("all bands", "percentiles of --rescale", "in the files as nodata, or use --bands with --nodata 0")
    )
    yield (
        f"{_have(blank)} pixels that are 0 in {where} and not declared as nodata: {listed}"
        f"{', …' if len(blank) > _LISTED else ''}. They count as values in the {counts}; if they are "
        f"black borders of scenes, declare them {remedy}"
    )


def _about_shown(traits: Mapping[str, Traits], is_training: bool) -> Iterator[str]:
    if paths := _with(traits, lambda one: one.shown > 0):
        yield (
            f"{_have(paths)} pixels that the file declares as missing, by its nodata value or a mask, and that are "
            f"not black ({_paths(paths)}); in 8-bit RGB they are read as colours. Make them black"
            + (", or leave them out by --bands" if is_training else "")
        )


def _about_order(traits: Mapping[str, Traits]) -> Iterator[str]:
    for marks in sorted({one.marks for one in traits.values()}):
        if len(marks) < len(RGB) or all(mark in ("", colour) for mark, colour in zip(marks, RGB, strict=False)):
            continue
        paths = [path for path, one in traits.items() if one.marks == marks]
        numbers = {mark: number for number, mark in enumerate(marks, 1) if mark}
        wanted = RGB if all(colour in numbers for colour in RGB) else tuple(numbers)
        remedy = ",".join(f"{name}={numbers[name]}" for name in wanted)
        yield (
            f"{counted(len(paths), 'image')} {'marks' if len(paths) == 1 else 'mark'} the bands as "
            f"{', '.join(mark or 'none' for mark in marks)} ({_paths(paths)}), and they are read as red, green, blue "
            f"in the order of the file; --bands {remedy} reads them by their marks"
        )


def _about_frames(traits: Mapping[str, Traits]) -> Iterator[str]:
    if paths := _with(traits, lambda one: one.has_more):
        yield (
            f"{_have(paths)} several frames or pages ({_paths(paths)}), of which only the first is read; save the "
            "others as images of their own if they matter"
        )


def _differing(
    traits: Mapping[str, Traits], key: Callable[[Traits], Any], what: str, show: Callable[[Any], str]
) -> Iterator[str]:
    groups: dict[Any, list[str]] = {}
    for path, one in traits.items():
        groups.setdefault(key(one), []).append(path)
    if len(groups) > 1:
        largest = sorted(groups.items(), key=lambda group: -len(group[1]))
        listed = "; ".join(
            f"{show(value)} in {counted(len(paths), 'image')} ({_paths(paths)})" for value, paths in largest[:_LISTED]
        )
        more = f"; and {len(largest) - _LISTED} more kinds" if len(largest) > _LISTED else ""
        yield f"{what} between images: {listed}{more}"


def _scaling(value: tuple[tuple[float, float], ...]) -> str:
    if not value:
        return "scale 1 and offset 0"
    pairs = dict.fromkeys(f"scale {scale:g} and offset {offset:g}" for scale, offset in value)
    return ", ".join(list(pairs)[:_LISTED]) + (" …" if len(pairs) > _LISTED else "")


def _nodata(value: tuple[float | None, ...]) -> str:
    return " or ".join(dict.fromkeys("none" if one is None else f"{one:g}" for one in value)) or "none"


def _names(value: tuple[str | None, ...]) -> str:
    return ", ".join("none" if one is None else repr(one_line(one)) for one in value)


def _with(traits: Mapping[str, Traits], has: Callable[[Traits], bool]) -> list[str]:
    return [path for path, one in traits.items() if has(one)]


def _have(paths: Sequence[str]) -> str:
    return f"{counted(len(paths), 'image')} {'has' if len(paths) == 1 else 'have'}"


def _paths(paths: Sequence[str]) -> str:
    return ", ".join(repr(path) for path in paths[:_LISTED]) + (", …" if len(paths) > _LISTED else "")
