"""Files of features hold what was put in, and are written without holding it all."""

import tracemalloc

import numpy as np
import pyarrow
import pytest

from sat_vg.backbone_finetuning.data.features.files import Features, reading_lines, write_features
from sat_vg.backbone_finetuning.data.features.spool import map_numbers


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending):
    rows, width = 20_000, 1250  # 100 MB
    content = np.memmap(tmp_path / "raw", np.float32, "w+", shape=(rows, width))
    content[:, 7] = np.arange(rows)
    content.flush()
    array = map_numbers(tmp_path / "raw", np.dtype(np.float32), (rows, width))
    names = [f"{number}.png" for number in range(rows)]
    target = tmp_path / f"f.{ending}"
    tracemalloc.start()  # numpy's arrays are counted
    try:
        write_features(target, Features({"pooled": array}, names, None, (), {"identity": "x"}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 45e6
    if ending == "parquet":
        assert pyarrow.default_memory_pool().max_memory() < 60e6
    read: dict = {}
    exec("\n".join(reading_lines(target, {"pooled": (width,)}, rows)), read)  # in several pieces, put together again
    assert np.array_equal(read["vectors"], content)
    assert list(read["paths"]) == names
