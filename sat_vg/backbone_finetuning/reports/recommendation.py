"""Which backbone and strategy to take under given limits, with the reason in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from sat_vg.backbone_finetuning.reports.comparison_report import Row, points, ranked, spread
from sat_vg.backbone_finetuning.reports.seed_statistics import difference

_MUCH_FASTER = 1.1  # smaller ratios may be measuring error


@dataclass(frozen=True)
class Limits:
    """What the user can afford.

    Attributes:
        max_params: parameters at the most.
        min_images_per_second: speed at the least.
    """

    max_params: int | None = None
    min_images_per_second: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.max_params is not None:
            parts.append(f"at most {self.max_params / 1e6:g} M parameters")
        if self.min_images_per_second is not None:
            parts.append(f"at least {self.min_images_per_second:g} images/s")
        return " and ".join(parts)

    def broken_by(self, row: Row) -> str | None:
        """Why a row is beyond the limits; None where it is within."""
        reasons = []
        if self.max_params is not None and row.parameters > self.max_params:
            reasons.append(f"has {row.parameters / 1e6:.2f} M parameters")
        if self.min_images_per_second is not None and row.images_per_second < self.min_images_per_second:
            reasons.append(f"reaches {row.images_per_second:.0f} images/s")
        return " and ".join(reasons) or None


def recommend(rows: Sequence[Row], limits: Limits, grain: float) -> tuple[Row | None, str]:
    """The row with the highest mean accuracy (or mAP, by which it is ranked) within the limits, and why.

    Where others cannot be told from it, that is said, and which of them is cheaper; it is not chosen for that, since
    with few seeds much cannot be told apart.

    Args:
        rows: all that were trained.
        limits: what is to be kept to.
        grain: what one validation image is of the accuracy; see ``Comparison.grain``.
    """
    order = ranked(rows)
    allowed = [row for row in order if limits.broken_by(row) is None]
    if not allowed:
        listed = {row.backbone: limits.broken_by(row) for row in order}
        reasons = "; ".join(f"{name} {reason}" for name, reason in listed.items())
        return None, f"Nothing is recommended: no backbone has {limits} ({reasons})."
    best = allowed[0]
    if str(limits):
        of_which = f"the highest of the {len(allowed)} that have {limits}"
        of_which = f"the only one that has {limits}" if len(allowed) == 1 else of_which
    else:
        of_which = "the only one that was trained" if len(rows) == 1 else f"the highest of {len(rows)}"
    sentences = [
        f"Recommended: {best.backbone} with {best.strategy}: {spread(best.scores, 100)} % validation "
        f"{best.measure.name}, {of_which}."
    ]
    beyond = [row for row in order if row.score > best.score and limits.broken_by(row)]
    if beyond:
        first, gain = beyond[0], points(beyond[0].score - best.score).removeprefix("+")
        sentences.append(
            f"{first.backbone} with {first.strategy} gets {gain} points more, but {limits.broken_by(first)}."
        )
    sentences += _doubts(best, allowed[1:], grain)
    return best, " ".join(sentences)


def _doubts(best: Row, others: Sequence[Row], grain: float) -> list[str]:
    """What speaks against taking the order for certain."""
    compared = [(row, difference(row.scores, best.scores, grain).is_noise) for row in others]
    same = [row for row, is_noise in compared if is_noise]
    sentences = []
    if any(is_noise is None for _, is_noise in compared):
        sentences.append("With one seed it is not known how much of the differences is chance: add seeds.")
    if same:
        names = ", ".join(f"{row.backbone} with {row.strategy}" for row in same)
        sentences.append(f"Within noise of it: {names}.")
        faster = max(same, key=lambda row: row.images_per_second)
        ratio = faster.images_per_second / best.images_per_second
        quicker = min(same, key=lambda row: row.seconds)
        if ratio > _MUCH_FASTER:
            sentences.append(f"Of these {faster.backbone} is {ratio:.1f} times as fast at inference.")
        elif quicker.seconds * _MUCH_FASTER < best.seconds:
            share = best.seconds / quicker.seconds
            sentences.append(f"Of these {quicker.backbone} with {quicker.strategy} trains {share:.1f} times as fast.")
    elif others and not any(is_noise is None for _, is_noise in compared):
        sentences.append("All others are behind it by more than noise.")
    return sentences
