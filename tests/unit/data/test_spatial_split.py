"""Splits by where images lie, and by groups."""

import json
import time

import numpy as np
import pytest
from scene_files import pixels, rasterio, write_scene

from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.spatial_split import (
    LEFT_OUT,
    TEST,
    TRAIN,
    VAL,
    near_pairs,
    split_blocks,
    split_groups,
)
from sat_vg.backbone_finetuning.data.sources.table import load_splits
from sat_vg.backbone_finetuning.data.windows.places import Footprint, boxes_in_metres, reproject


def gaps(first, second):
    return np.hypot(*np.moveaxis(np.maximum(0, np.maximum(
        first[:, None, :2] - second[:, 2:], second[:, :2] - first[:, None, 2:])), -1, 0))  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_no_two_parts_are_nearer_than_a_block(seed):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 10_000, (1500, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(20, 400, (1500, 2))], axis=1)
    labels = (corners[:, 0] // 2500).astype(int).tolist()
    parts = split_blocks(boxes, labels, 700, (0.2, 0.1), seed)
    counts = np.bincount(parts, minlength=4)
    assert counts[TRAIN] > 500
    assert counts[VAL] > 150
    assert counts[TEST] > 50
    for one, other in ((TRAIN, VAL), (TRAIN, TEST), (VAL, TEST)):
        assert gaps(boxes[parts == one], boxes[parts == other]).min() >= 700 * (1 - 1e-6)
    # What was left out is near to something: nothing is thrown away for nothing.
    for place in np.flatnonzero(parts == LEFT_OUT):
        beside = [np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / 700)]
        near = gaps(boxes[[place]], boxes[(parts == VAL) | (parts == TEST)]).min() < 2 * 700 * np.sqrt(2)
        assert near, beside
    assert np.array_equal(parts, split_blocks(boxes, labels, 700, (0.2, 0.1), seed))
    assert {labels[place] for place in np.flatnonzero(parts == TRAIN)} == {0, 1, 2, 3}


def test_near_pairs_are_all_there():
    generator = np.random.default_rng(1)
    first, second = (
        np.concatenate([c := generator.uniform(-100, 100, (200, 2)), c + generator.uniform(0, 9, (200, 2))], axis=1)
        for _ in range(2)
    )
    found = {
        (int(i), int(j)) for own, others in near_pairs(first, second, 5) for i, j in zip(own, others, strict=True)
    }
    wanted = set(map(tuple, np.argwhere(gaps(first, second) <= 5).tolist()))
    assert wanted <= found
    assert len(wanted) > 50


@pytest.mark.parametrize(("crs", "metres"), [
    ("EPSG:32632", 1), ("EPSG:2263", 0.3048006), ("EPSG:3857", 0.66), ("EPSG:4326", 111_000),
])  # fmt: skip
def test_metres_of_any_crs(crs, metres):
    """A box 300 units high (a tenth of a degree in degrees), at 48 degrees of latitude where units depend on it."""
    corner = {"EPSG:4326": (9, 48), "EPSG:3857": (1e6, 6.1e6)}.get(crs, (500_000, 200_000))
    side = 0.1 if crs == "EPSG:4326" else 300
    ring = np.array(corner) + np.array([(0, 0), (side, 0), (side, side), (0, side)])
    left, bottom, right, top = boxes_in_metres([Footprint(rasterio.CRS.from_user_input(crs), ring)])[0]
    assert top - bottom == pytest.approx(side * metres, rel=0.02)
    if crs == "EPSG:4326":
        assert right - left == pytest.approx((top - bottom) * np.cos(np.radians(48)), rel=0.01)


@pytest.mark.parametrize(
    ("first", "second", "degrees"),
    [
        (("EPSG:4326", 179.98), ("EPSG:4326", -179.99), 0.02),  # between the edges of two chips, each 0.01 wide
        (("EPSG:4326", 179.98), ("EPSG:4326", 180.01), 0.02),
        (("EPSG:4326", 179.995), ("EPSG:4326", -179.98), 0.015),  # the first lies across
        (("EPSG:32660", 179.98), ("EPSG:32601", -179.99), 0.02),
        (("EPSG:32660", 179.995), ("EPSG:32601", -179.98), 0.015),
        (("EPSG:3857", 179.98), ("EPSG:3857", -179.99), 0.02),
        (("EPSG:4326", -70.02), ("EPSG:4269", -69.99), 0.02),
        (("EPSG:4326", -0.02), ("EPSG:4326", 0.01), 0.02),
        (("EPSG:4326", -179.0), ("EPSG:4326", 1.0), 179.99),
    ],
)
def test_neighbours_across_the_antimeridian_are_near(first, second, degrees):
    """A chip on each side, and others around the earth that lead the eye astray; both near the equator."""
    prints = []
    for name, longitude in (first, second, ("EPSG:4326", -140.0), ("EPSG:4326", 175.0)):
        ring = np.array([(longitude, 0.5), (longitude + 0.01, 0.5), (longitude + 0.01, 0.51), (longitude, 0.51)])
        crs = rasterio.CRS.from_user_input(name)
        prints.append(Footprint(crs, ring if crs.is_geographic else reproject("EPSG:4326", crs, ring)))
        if name == "EPSG:3857" and longitude > 179.99:
            prints[-1].corners[:, 0] %= 2 * 20037508.342789244
    boxes = boxes_in_metres(prints)
    assert np.ptp(boxes[:, ::2], axis=1) == pytest.approx(np.full(4, 0.01 * 110_574), rel=0.01)
    assert gaps(boxes[:1], boxes[1:2])[0, 0] == pytest.approx(degrees * 110_574, rel=0.01)


def test_blocks_and_touching_chips_across_the_antimeridian(tmp_path, command):
    """A row of chips from 179.9 to -179.9 degrees: parts are a block apart there, too, and neighbours are told."""
    for number in range(40):
        longitude = (179.9 + 0.005 * number + 180) % 360 - 180
        path = tmp_path / "chips" / "ab"[number // 2 % 2] / f"{number:02d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        place = rasterio.Affine(0.005 / 32, 0, longitude, 0, -0.005 / 32, 0.1)
        write_scene(path, pixels(32, 32, seed=number), crs="EPSG:4326", transform=place, tiled=False)
    for seed in range(6):
        query = ImageQuery(path=str(tmp_path / "chips"), split="spatial", block_size=1500.0, seed=seed)
        train, val = ([int(path[-6:-4]) for path in split.paths] for split in load_splits(query).parts)
        assert min(abs(one - other) for one in train for other in val) >= 4  # chips of 553 m
    for part, numbers in (("train", range(20)), ("val", range(20, 40))):
        for number in numbers:
            name = f"{'ab'[number // 2 % 2]}/{number:02d}.tif"
            (tmp_path / "parts" / part / name[0]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "parts" / part / name).hardlink_to(tmp_path / "chips" / name)
    _, out, _ = command("check", tmp_path / "parts", "--json")
    (line,) = (each for each in json.loads(out)["warnings"] if "overlap or touch" in each)
    assert line.startswith("1 image of val (5 %)")


def test_many_blocks_take_seconds():
    """20 000 images, each alone in its block: what lies beside a block is looked up and not searched for."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 3e6, (20_000, 2))
    began = time.process_time()
    parts = split_blocks(np.concatenate([corners, corners + 640], axis=1), [0, 1] * 10_000, 1000, (0.2, 0.0), 0)
    assert time.process_time() - began < 60
    assert (parts == VAL).sum() > 2000


def test_groups_stay_together():
    groups = [f"flight {number % 7}" for number in range(70)]
    labels = [number // 35 for number in range(70)]
    parts = split_groups(groups, labels, 0.2, 0)
    assert {len({int(part) for part, g in zip(parts, groups, strict=True) if g == name}) for name in groups} == {1}
    assert 10 <= (parts == VAL).sum() <= 20


@pytest.fixture
def chips(tmp_path):
    """A row of 40 chips of two classes side by side, 320 m each."""
    for number in range(40):
        place = rasterio.Affine(10, 0, 500_000 + 320 * number, 0, -10, 5_300_000)
        path = tmp_path / "chips" / "ab"[number // 2 % 2] / f"{number:02d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scene(path, pixels(32, 32, seed=number), transform=place, tiled=False)
    return tmp_path / "chips"


def test_chips_in_folders_are_split_by_blocks(chips):
    splits = load_splits(ImageQuery(path=str(chips), split="spatial", block_size=900.0))
    numbers = {split.name: sorted(int(path[-6:-4]) for path in split.paths) for split in splits.parts}
    assert len(numbers["val"]) >= 8
    assert min(abs(one - other) for one in numbers["train"] for other in numbers["val"]) >= 4  # 960 m between edges
    assert f", {40 - len(numbers['train']) - len(numbers['val'])} between them left out" in splits.description


def test_a_check_names_neighbours(command, chips, tmp_path):
    _, out, _ = command("check", chips, "--json")
    (line,) = (each for each in json.loads(out)["warnings"] if "overlap or touch" in each)
    assert "of val (100 %) overlap or touch images of train on the ground" in line
    _code, out, _err = command("check", chips, "--json", "--split", "spatial", "--block_size", 900)
    assert not [each for each in json.loads(out)["warnings"] if "overlap or touch" in each]


def test_a_column_of_a_table_keeps_images_together(chips, tmp_path, command):
    paths = sorted(chips.rglob("*.tif"), key=lambda path: path.name)
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name},flight{int(path.stem) // 5}" for path in paths]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,flight", *rows]))
    splits = load_splits(ImageQuery(path=str(tmp_path / "images.csv"), group_column="flight"))
    flights = [{int(path[-6:-4]) // 5 for path in split.paths} for split in (splits.train, splits.val)]
    assert not flights[0] & flights[1]
    assert "val by 'flight', 8 groups" in splits.description
    for flags, message in (
        (("images.csv", "--group_column", "nothing"), "has no column 'nothing'"),
        ((chips, "--group_column", "flight"), "is no table"),
        ((chips, "--split", "spatial"), "needs block_size"),
        ((chips, "--split", "spatial", "--block_size", 9e9), "leave nothing for"),
    ):
        code, _, err = command("check", *flags)
        assert (code, message in err) == (2, True), err


@pytest.mark.parametrize("column", ["scene", "window"])
def test_a_column_that_places_a_window_can_be_the_group(tmp_path, command, column):
    """``--group_column scene`` on a table of windows: no scene is in train and in val."""
    rows = []
    for number in range(4):
        place = rasterio.Affine(10, 0, 500_000 + 2000 * number, 0, -10, 5_300_000)
        write_scene(tmp_path / f"{number}.tif", pixels(64, 64, seed=number), transform=place)
        rows += [f"{number}.tif,{left} {top} 32 32,{'ab'[top // 32]}" for left in (0, 32) for top in (0, 32)]
    (tmp_path / "tiles.csv").write_text("\n".join(["scene,window,label", *rows]))
    splits = load_splits(ImageQuery(path=str(tmp_path / "tiles.csv"), group_column=column))
    held = [
        {path.scene if column == "scene" else path.window for path in split.paths}
        for split in (splits.train, splits.val)
    ]
    assert held[0]
    assert held[1]
    assert not held[0] & held[1]
    assert f"val by {column!r}, 4 groups" in splits.description
