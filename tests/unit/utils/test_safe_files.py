import errno
import glob
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.printable import printable
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, folder_aside, remove_unfinished, write_text
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


def test_a_file_system_that_cannot_sync_folders_takes_files(tmp_path, monkeypatch):
    """As some network and user-space file systems; that the content is not on the disk is an error all the same."""
    real_fsync, fails = os.fsync, stat.S_ISDIR

    def fsync(descriptor):
        if fails(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").read_text() == "text"
    fails = stat.S_ISREG
    with pytest.raises(OSError, match="Invalid argument"):
        write_text(tmp_path / "x", "other")
    assert (tmp_path / "x").read_text() == "text"


def killed_while_writing(path: Path, writing) -> None:
    """A process that is killed in the middle."""
    child = os.fork()
    if not child:
        with writing(path) as written:
            (written / "part").write_bytes(b"x" * 999) if isinstance(written, Path) else written.write(b"x" * 9999)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


NAMES = ["weights.pt2", "a[1].pt", "*.npz", "ünï 卫星.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
class TestWhatKilledProcessesLeave:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("writing", [atomic_write, folder_aside])
    def test_the_next_one_removes_it(self, tmp_path, name, writing):
        write_text(tmp_path / name, "old")
        for _ in range(3):
            killed_while_writing(tmp_path / name, writing)
            assert len(list(tmp_path.iterdir())) == 2  # and not one more with each kill
        assert (tmp_path / name).read_text() == "old"
        for other in (folder_aside, atomic_write):
            with other(tmp_path / name):
                pass
        assert [found.name for found in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("writing", [atomic_write, folder_aside])
    def test_who_still_writes_keeps_it(self, tmp_path, name, writing):
        killed_while_writing(tmp_path / name, writing)
        with writing(tmp_path / name) as first:
            kept = set(tmp_path.iterdir())
            write_text(tmp_path / name, "of another process")
            remove_unfinished(tmp_path, [glob.escape(name), "*"])
            assert set(tmp_path.iterdir()) == {*kept, tmp_path / name}
            if not isinstance(first, Path):
                first.write(b"the last")
        assert [found.name for found in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == ("of another process" if isinstance(first, Path) else "the last")

    @pytest.mark.parametrize("kind", ["pipe", "link", "folder", "dangling"])
    def test_whatever_else_lies_there_is_no_hindrance(self, tmp_path, kind):
        (tmp_path / "own").write_text("somebody's")
        place = tmp_path / ".f.unfinished.tmp"
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "folder":
            (place / "inside").mkdir(parents=True)
        else:
            place.symlink_to(tmp_path / "own" if kind == "link" else "/nowhere/at/all")
        write_text(tmp_path / "f", "new")
        assert (tmp_path / "f").read_text() == "new"
        assert (tmp_path / "own").read_text() == "somebody's"

    def test_many_processes_write_the_same_file(self, tmp_path):
        texts = [str(number) * 99_999 for number in range(4)]
        children = []
        for text in texts:
            child = os.fork()
            if not child:
                for _ in range(30):
                    write_text(tmp_path / "f", text)
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        assert (tmp_path / "f").read_text() in texts
        assert [found.name for found in tmp_path.iterdir()] == ["f"]


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
