"""The study of grounding: its phrases name one cell each, its intervals are right, and it goes on where it was."""

import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, write_image
from torchvision.models import mobilenet_v2

pytestmark = pytest.mark.recipe
KINDS = {"Forest": (20, 90, 30), "SeaLake": (20, 40, 120), "Highway": (120, 120, 120), "Pasture": (90, 160, 60)}
KINDS |= {"Industrial": (200, 190, 180), "River": (40, 90, 130)}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiles")
    for place, (name, colour) in enumerate(KINDS.items()):
        for number in range(20):
            write_image(root / name / f"{number}.png", colour, 100 * place + number)
    return root


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests/bench"))
    import grounding
    import mosaics

    for split, count in (("train", 6), ("val", 30), ("test", 6)):
        monkeypatch.setitem(mosaics.COUNTS, split, count)
    return grounding


def test_no_tile_has_two_uses(study, tiles):
    uses = study.split_tiles(tiles)
    paths = [path for by_class in uses.values() for files in by_class.values() for path in files]
    assert len(paths) == len(set(paths)) == 6 * 20
    assert all(files for by_class in uses.values() for files in by_class.values())


def test_a_phrase_names_one_cell(study, tiles):
    """Told anew from where the cells lie and from their colours."""
    from mosaics import words_of

    drawn = study.make_mosaics(study.split_tiles(tiles)["val"], "val", "data")
    colours = {name: np.array(colour) for name, colour in KINDS.items()}
    families = set()
    for record in drawn.records:
        pixels = drawn.images[int(record.image)].permute(1, 2, 0).numpy().astype(float)
        x1, y1, x2, y2 = map(int, record.box)
        inside = pixels[y1:y2, x1:x2].mean((0, 1))
        nearest = min(colours, key=lambda name: np.abs(colours[name] - inside).sum())
        words = record.phrase.removeprefix("the ")
        assert words.startswith(words_of(nearest)), record
        rest = words.removeprefix(words_of(nearest)).strip()
        # Where else the mosaic looks like that class.
        looks_alike = np.abs(pixels - colours[nearest]).sum(-1) < 120
        looks_alike[y1:y2, x1:x2] = False
        smooth = looks_alike.reshape(16, 8, 16, 8).mean((1, 3)) > 0.7  # blocks of 8 pixels
        rows, columns = (8 * places + 4 for places in np.nonzero(smooth))
        if not rest:
            assert not len(rows), record
        elif rest == "on the left":
            assert len(columns) and columns.min() > x2 - 8, record
        elif rest == "on the right":
            assert len(columns) and columns.max() < x1 + 8, record
        elif rest == "at the top":
            assert len(rows) and rows.min() > y2 - 8, record
        elif rest == "at the bottom":
            assert len(rows) and rows.max() < y1 + 8, record
        families.add(rest.split(" the ")[0])
    assert len(families) >= 8


def test_a_paired_interval(study):
    base, images = np.zeros((2, 40)), [str(number // 4) for number in range(40)]
    ours = base.copy()
    ours[:, :20] = 0.9  # the first five images of ten
    mean, low, high = study.paired_interval(ours, base, images)
    assert mean == 50 and 15 < low < 30 and 70 < high < 85
    assert study.paired_interval(ours, ours, images) == (0, 0, 0)


def test_a_stopped_study_goes_on(study, tiles, tmp_path, monkeypatch, capsys):
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "weights.pth")
    flags = ["--eurosat", tiles, "--weights", tmp_path / "weights.pth", "--work", tmp_path / "work"]
    flags += ["--results", tmp_path / "found.jsonl", "--table", tmp_path / "table.md", "--seeds", 0]

    def run(most: int) -> str:
        monkeypatch.setattr(sys, "argv", ["grounding.py", *map(str, flags), "--most", str(most)])
        study.main()
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    try:
        assert "8 cells to run" in run(1)
        assert "7 cells to run" in run(0)
    finally:
        torch.set_num_threads(threads)
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 1
    table = (tmp_path / "table.md").read_text()
    assert "| imagenet | frozen |" in table and "| blind | no network |" in table
