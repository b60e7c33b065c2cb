"""Images with one coloured square each, and phrases that do not say where it is."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def write_squares(root: Path, counts: dict[str, int]) -> Path:
    """A folder with ``split.json`` and ``split_N.png``, 64 pixels wide and high, as many as ``counts`` says."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        entries = []
        for number in range(count):
            noise = generator.integers(0, 20, (64, 64, 3), dtype=np.uint8)
            pixels = np.full((64, 64, 3), 110, dtype=np.uint8) + noise
            name, colour = list(COLOURS.items())[number % 2]
            x, y = (int(value) for value in generator.integers(0, 40, 2))
            pixels[y : y + 24, x : x + 24] = colour
            Image.fromarray(pixels).save(root / f"{split}_{number}.png")
            box = [x, y, x + 24, y + 24]
            entries.append({"image": f"{split}_{number}.png", "phrase": f"the {name} square", "box": box})
        (root / f"{split}.json").write_text(json.dumps(entries))
    return root
