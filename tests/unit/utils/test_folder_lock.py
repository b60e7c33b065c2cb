import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from sat_vg.backbone_finetuning.utils import folder_lock
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.folder_lock import LOCK, lock_folder

HOLDS = """
import sys, time
from pathlib import Path
from sat_vg.backbone_finetuning.utils.folder_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path / "run"``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_is_used_by_one_at_a_time(tmp_path):
    folder = tmp_path / "a" / "run"
    with lock_folder(folder):
        text = json.loads((folder / LOCK).read_text())
        assert (text["pid"], text["host"]) == (os.getpid(), platform.node())
        refusal = rf"in use by another run \(process {os.getpid()} on "
        with pytest.raises(ConfigError, match=refusal) as caught, lock_folder(folder):
            pytest.fail("two at once")
        assert "--checkpoint_dir DIR" in str(caught.value)
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with lock_folder(folder), lock_folder(tmp_path / "b"):
        pass
    assert not (tmp_path / "b").exists()  # it was made for nothing


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path, holder):
    with pytest.raises(ConfigError, match=f"process {holder.pid} on "), lock_folder(tmp_path / "run"):
        pytest.fail("two at once")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()  # it could not tidy up
    with lock_folder(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()


def test_a_lock_of_another_host_says_how_to_remove_it(tmp_path):
    path = tmp_path / LOCK
    path.write_text(json.dumps({"pid": 7, "host": "elsewhere", "started": "2026-01-01 00:00:00"}))
    refusal = "process 7 on elsewhere since 2026-01-01 00:00:00"
    with pytest.raises(ConfigError, match=refusal) as caught, lock_folder(tmp_path):
        pytest.fail("two at once")
    assert f"rm {str(path)!r}" in str(caught.value)
    path.unlink()
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"', "\0\0"])
def test_a_lock_that_was_cut_off_is_no_obstacle(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with lock_folder(tmp_path):
        pass


def test_where_the_file_system_locks_nothing_the_process_is_looked_for(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(folder_lock, "lock_file", lambda descriptor: None)
    with pytest.raises(ConfigError, match=f"process {holder.pid} on "), lock_folder(tmp_path / "run"):
        pytest.fail("two at once")
    holder.kill()
    holder.wait()
    with lock_folder(tmp_path / "run"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_does_not_keep_its_dead_parents_lock(tmp_path):
    fork = "import os\n    child = os.fork()\n    os.write(1, b'%d\\n' % child)"
    code = HOLDS.replace('print("locked", flush=True)', fork)
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    child = max(int(parent.stdout.readline()) for _ in range(2))
    try:
        parent.kill()
        parent.wait()
        os.kill(child, 0)  # it lives on
        time.sleep(0.05)
        with lock_folder(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="cannot be written to"), lock_folder(folder):
            pytest.fail("it is a file")
