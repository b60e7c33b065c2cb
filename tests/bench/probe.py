"""How the exact linear probe chooses its L2 strength: by held-out loss over folds, against accuracy on one fifth.

    python tests/bench/probe.py --data UCMerced:100 EuroSAT:300 --work DIR \
        --backbone mobilenet_v2=mobilenet_v2-imagenet.pth timm:tf_efficientnet_lite0=lite0.pth

``DIR:N``: N images of each class of DIR, always the same. Their pooled features are kept in ``--work``.
The seed draws the split, 80/20, stratified, and the folds. Calibration error: of 15 bins of equal width (Guo et al.,
2017). Seconds are those of the processor, with one thread.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import torch
from runs import machine
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.evaluation.calibration import expected_calibration_error, reliability
from sat_vg.backbone_finetuning.training.linear_probe import (
    GOALS,
    STRENGTHS,
    TO_RANK,
    TO_THE_END,
    Problem,
    _solve,
    solve_linear_probe,
)

_HELD_OUT, _PATIENCE, _BATCH_SIZE = 0.2, 2, 32


def stored_features(data: str, backbone: str, work: Path) -> tuple[Tensor, Tensor]:
    """Features ``[N, D]`` and labels ``[N]``, computed unless they are kept already."""
    root, _, count = data.rpartition(":")
    name, _, weights = backbone.partition("=")
    path = work / f"{Path(root).name}-{count}-{name.replace(':', '-')}.pt"
    if not path.exists():
        classes = sorted(folder for folder in Path(root).iterdir() if folder.is_dir())
        files = [sorted(folder.iterdir()) for folder in classes]
        chosen = [
            sorted(random.Random(folder.name).sample(few, int(count)))
            for folder, few in zip(classes, files, strict=True)
        ]
        model = FineTuneModel(name, len(classes), weights=weights).eval().to(memory_format=torch.channels_last)
        geometry, features = model.preprocessing.geometry(), []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            paths = [str(path) for few in chosen for path in few]
            for start in range(0, len(paths), _BATCH_SIZE):
                images = torch.stack([geometry(decode_rgb(path)) for path in paths[start : start + _BATCH_SIZE]])
                values = model.preprocessing.normalise(images).to(memory_format=torch.channels_last)
                features.append(model.forward_pooled(values).float())
        labels = torch.arange(len(classes)).repeat_interleave(int(count))
        torch.save({"features": torch.cat(features), "labels": labels}, path)
    kept = torch.load(path, weights_only=True)
    return kept["features"], kept["labels"]


def held_out_part(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth of each class, bool ``[N]``."""
    part = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator)
        part[places[order[: round(_HELD_OUT * len(places))]]] = True
    return part


def strength_by_accuracy(features: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator) -> float:
    """The strength with the highest accuracy on one held-out fifth, as it was chosen before."""
    standardised = (features - features.mean(0)).double() / features.std(0, correction=0).clamp_min(1e-6)
    part = held_out_part(labels, generator)
    problem = Problem(standardised[~part], labels[~part], num_classes, True, GOALS["single_label"])
    best_place, best_score, start = 0, -1.0, None
    effort = TO_RANK._replace(tolerance=TO_THE_END.tolerance)
    for place, strength in enumerate(STRENGTHS):
        start = _solve(problem, strength, effort, start)
        logits = standardised[part] @ start[:, :-1].T + start[:, -1]
        score = float((logits.argmax(1) == labels[part]).double().mean())
        if score > best_score:
            best_place, best_score = place, score
        if place - best_place > _PATIENCE:
            break
    return STRENGTHS[best_place]


def at_strength(features: Tensor, labels: Tensor, num_classes: int, strength: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the probe at a given strength."""
    mean, deviation = features.mean(0).double(), features.std(0, correction=0).clamp_min(1e-6).double()
    problem = Problem((features - mean) / deviation, labels, num_classes, True, GOALS["single_label"])
    found = _solve(problem, strength, TO_THE_END)
    weight = found[:, :-1] / deviation
    return weight.float(), (found[:, -1] - weight @ mean).float()


def figures(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> list[float]:
    """Accuracy in %, log-loss, calibration error in %."""
    logits = features @ weight.T + bias
    shares, given = logits.softmax(1).max(1)
    bins = reliability(shares, given == labels)
    accuracy = float((given == labels).double().mean())
    return [100 * accuracy, float(functional.cross_entropy(logits, labels)), 100 * expected_calibration_error(bins)]


def measure(features: Tensor, labels: Tensor, seed: int) -> dict[str, list[float]]:
    """Strength, accuracy, log-loss, calibration error, seconds: chosen by accuracy, and by loss."""
    num_classes = int(labels.max()) + 1
    part = held_out_part(labels, torch.Generator().manual_seed(1000 + seed))
    given, theirs = features[~part], labels[~part]
    clock = time.process_time()
    strength = strength_by_accuracy(given, theirs, num_classes, torch.Generator().manual_seed(seed))
    before = at_strength(given, theirs, num_classes, strength)
    middle = time.process_time()
    probe = solve_linear_probe(given, theirs, num_classes, torch.Generator().manual_seed(seed))
    end = time.process_time()
    unseen = features[part], labels[part]
    return {
        "accuracy, one fifth": [strength, *figures(*before, *unseen), middle - clock],
        "log-loss, 5 folds": [probe.strength, *figures(probe.weight, probe.bias, *unseen), end - middle],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR:N")
    parser.add_argument("--backbone", nargs="+", required=True, metavar="NAME=WEIGHTS")
    parser.add_argument("--work", type=Path, required=True, help="folder of the features")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(machine())
    print("\n| data | features of | chosen by | L2 | accuracy, % | log-loss | calibration error, % | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for data in options.data:
        for backbone in options.backbone:
            features, labels = stored_features(data, backbone, options.work)
            runs = [measure(features, labels, seed) for seed in options.seeds]
            for way in runs[0]:
                strengths, *columns = zip(*(run[way] for run in runs), strict=True)
                shown = [
                    f"{statistics.mean(column):.{digits}f} ± {statistics.stdev(column):.{digits}f}"
                    for column, digits in zip(columns, (2, 3, 1, 1), strict=True)
                ]
                chosen = ", ".join(f"{strength:.0e}" for strength in strengths)
                place = f"{Path(data.rpartition(':')[0]).name}, {len(labels)} images"
                print(
                    f"| {place} | {backbone.partition('=')[0]} | {way} | {chosen} | {' | '.join(shown)} |", flush=True
                )


if __name__ == "__main__":
    main()
