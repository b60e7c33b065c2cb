"""The chart of a search: the score of each trial, and how much each setting matters."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sat_vg.backbone_finetuning.reports.figures import add_grid, plain


def draw_trials(
    points: Sequence[tuple[int, float, bool]], importances: Mapping[str, float], metric: str, is_share: bool
) -> Figure:
    """Scores in the order of the trials, and beside them the importances, the largest first.

    Args:
        points: number of a trial, its score, and whether it was trained to its end.
        importances: shares of 1 by setting; empty where they are not known.
        metric: name of the score.
        is_share: whether scores are shares of 1, drawn in per cent, the larger the better.
    """
    figure = Figure(figsize=(8.2, max(3.2, 1.4 + 0.35 * len(importances))), layout="constrained")
    scores, shares = figure.subplots(1, 2, width_ratios=(3, 2))
    factor = 100 if is_share else 1
    for is_done, label, face in ((True, "to its end", "#0072b2"), (False, "stopped early", "white")):
        chosen = [(number, factor * score) for number, score, done in points if done == is_done]
        if chosen:
            numbers, values = zip(*chosen, strict=True)
            scores.plot(numbers, values, "o", markeredgecolor="#0072b2", markerfacecolor=face, label=label)
    best, line = None, []
    for number, score, done in sorted(points):
        if done:
            better = max if is_share else min
            best = score if best is None else better(best, score)
            line.append((number, factor * best))
    scores.step(*zip(*line, strict=True), where="post", color="#d55e00", label="best so far")
    scores.set(xlabel="trial", ylabel=f"{metric}{', %' * is_share}")
    scores.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scores.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)  # above the points
    add_grid(scores)
    ordered = sorted(importances.items(), key=lambda pair: pair[1])
    if ordered:
        bars = shares.barh(
            [plain(name) for name, _ in ordered], [100 * share for _, share in ordered], color="#009e73"
        )
        shares.bar_label(bars, fmt="%.0f", padding=3)  # a bar of 0 % would look like one that is missing
        shares.set(xlabel="importance, %", xlim=(0, 112), xticks=range(0, 101, 20))
        add_grid(shares, "x")
    else:
        shares.axis("off")
        shares.text(0.5, 0.5, "importances need five finished\ntrials and two settings", ha="center", va="center")
    return figure
