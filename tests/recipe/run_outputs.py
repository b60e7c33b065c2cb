"""What runs leave, compared to the bit: states, models, lines and curves, but for the times in them."""

import json
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMES = {"seconds", "images_per_second"}


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same(first: object, second: object) -> bool:
    """Equal to the bit, tensors included."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def lines_of(folder: Path) -> list[dict]:
    entries = map(json.loads, (folder / "logs/metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("step/", "epoch/"))]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags if tag.split("/")[1] not in TIMES}


def require_equal(whole: Path, cut: Path, epochs: int) -> None:
    """The same weights, optimizer, history, best model, lines and TensorBoard curves."""
    one, two = (read(folder / "ckpt/last.pt") for folder in (whole, cut))
    for content in (one, two):
        content["config"].pop("num_workers")
        assert content["state"].pop("train_seconds") >= 0
        assert content["state"]["finished"]
    assert all(same(one[name], two[name]) for name in one), [name for name in one if not same(one[name], two[name])]
    one, two = (read(folder / "ckpt/best_model.pt") for folder in (whole, cut))
    for content in (one, two):
        content["config"].pop("num_workers")
    assert same(one, two)
    assert lines_of(whole) == lines_of(cut)
    curves = scalars_of(whole), scalars_of(cut)
    assert curves[0] == curves[1]
    assert len(curves[0]["epoch/val_loss"]) == epochs
    assert not list(cut.glob("*/.*")), "temporary files or locks were left"
