"""The study of grounding: its phrases name one cell each, its intervals are right, and it goes on where it was."""

import random
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, write_image
from torchvision.models import mobilenet_v2

pytestmark = pytest.mark.recipe
KINDS = {"Forest": (20, 90, 30), "SeaLake": (10, 10, 190), "Highway": (120, 120, 120), "Pasture": (90, 160, 60)}
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
    from mosaics import split_tiles

    uses = split_tiles(tiles)
    paths = [path for by_class in uses.values() for files in by_class.values() for path in files]
    assert len(paths) == len(set(paths)) == 6 * 20
    assert all(files for by_class in uses.values() for files in by_class.values())


def cells_named(phrase: str, names: list[str]) -> list[int]:
    """All cells of a 3 x 3 grid that a phrase may mean, row by row; told by words alone."""
    for words, (down, right) in {" above the ": (-1, 0), " below the ": (1, 0), " to the left of the ": (0, -1),
                                 " to the right of the ": (0, 1)}.items():  # fmt: skip
        if words in phrase:
            own, other = phrase.removeprefix("the ").split(words)
            return [
                3 * row + column
                for row in range(3)
                for column in range(3)
                if names[3 * row + column] == own and 0 <= row - down < 3 and 0 <= column - right < 3
                and names[3 * (row - down) + column - right] == other
            ]  # fmt: skip
    for words, outward in {" at the top": lambda c: -(c // 3), " at the bottom": lambda c: c // 3,
                           " on the left": lambda c: -(c % 3), " on the right": lambda c: c % 3}.items():  # fmt: skip
        if phrase.endswith(words):
            same = [c for c in range(9) if names[c] == phrase.removeprefix("the ").removesuffix(words)]
            return [c for c in same if outward(c) == max(map(outward, same))]
    return [c for c in range(9) if names[c] == phrase.removeprefix("the ")]


def test_a_phrase_names_one_cell(study):
    from mosaics import phrases_of, words_of

    draw, families = random.Random(0), set()
    for _ in range(100):
        kinds = [draw.choice(list(KINDS)) for _ in range(9)]
        for phrase, cell in phrases_of(kinds):
            assert cells_named(phrase, [words_of(kind) for kind in kinds]) == [cell], (phrase, kinds)
            families.add(
                " ".join(
                    word
                    for word in phrase.split()
                    if word in ("above", "below", "left", "right", "top", "bottom", "of")
                )
            )
    assert len(families) == 9


def test_a_mosaic_shows_the_tiles_that_its_phrases_name(study, tiles):
    from mosaics import make_mosaics, split_tiles, words_of

    drawn = make_mosaics(split_tiles(tiles)["val"], "val", "data")
    assert len(drawn.images) == 30 and len(drawn.records) > 100
    for record in drawn.records:
        x1, y1, x2, y2 = map(int, record.box)
        inside = drawn.images[int(record.image), :, y1:y2, x1:x2].float().mean((1, 2)).numpy()
        nearest = min(KINDS, key=lambda name: np.abs(np.subtract(KINDS[name], inside)).sum())
        assert record.phrase.startswith(f"the {words_of(nearest)}"), record


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
        assert "12 cells to run" in run(1)
        assert "11 cells to run" in run(0)
    finally:
        torch.set_num_threads(threads)
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 1
    table = (tmp_path / "table.md").read_text()
    assert "| random | frozen |" in table and "| blind | no network |" in table
