import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.printable import printable
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError("stop")
    assert path.read_text() == "old"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_says_so(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
import torch
from sat_vg.backbone_finetuning.utils.errors import WriteError
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors
path = Path("f.pt")
save_tensors(path, {"a": torch.ones(2)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as if the disk ended here
try:
    save_tensors(path, {"a": torch.zeros(1_000_000)})
except WriteError as error:
    print(error)
assert torch.equal(load_tensors(path)["a"], torch.ones(2))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'f.pt' cannot be written (" in done.stdout
    assert "MiB are free" in done.stdout
    assert [found.name for found in tmp_path.iterdir()] == ["f.pt"]


def test_the_content_is_synced_before_the_rename(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def replace(self, target):
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_text(tmp_path / "x", "text")
    assert events == ["file", "rename", "folder"]


def test_tensors_and_plain_data_survive(tmp_path):
    content = {"t": torch.randn(3), "plain": {"a": [1, 2.5, None, "x", True]}}
    save_tensors(tmp_path / "f.pt", content)
    loaded = load_tensors(tmp_path / "f.pt")
    assert torch.equal(loaded["t"], content["t"])
    assert loaded["plain"] == content["plain"]
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError):
        load_tensors(tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match="no file"):
        load_tensors(tmp_path)


def test_seeds_are_spread_and_the_same_on_every_machine():
    seeds = {derive_seed(s, p, e, i) for s in range(3) for p in Purpose for e in range(5) for i in range(50)}
    assert len(seeds) == 3 * len(Purpose) * 5 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, Purpose.ORDER) != derive_seed(0, Purpose.ORDER, 0)
    assert derive_seed(7, Purpose.STEP, 12) == 6206856819826139203


def test_control_characters_become_visible():
    assert printable("a\x1b[31mb\nc\r") == "a\\x1b[31mb\nc\\r"
    assert printable("Überflutung 水") == "Überflutung 水"
