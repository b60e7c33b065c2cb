import json
import os
import platform
import shutil
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


@pytest.mark.parametrize(
    "lease",
    [{}, {"kernel": "another", "processes": "p", "token": "t", "renewals": 9, "renewed": "2099-01-01 00:00:00"}],
)
@pytest.mark.parametrize("hours", [-50_000, 50_000], ids=["its clock is behind", "its clock is ahead"])
def test_a_lock_that_a_dead_host_left_behind_is_taken_over(tmp_path, lease, hours, quick, capsys):
    path = tmp_path / LOCK
    path.write_text(json.dumps({"pid": 7, "host": "elsewhere", "started": "2026-01-01 00:00:00", **lease}))
    os.utime(path, times=(time.time() + 3600 * hours,) * 2)
    with lock_folder(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    out = capsys.readouterr().out
    assert "process 7 on elsewhere since 2026-01-01 00:00:00" in out
    assert "taken over" in out
    assert ("waiting 1 s" in out) is bool(lease)  # the first was written by a version that renewed nothing


def on_another_kernel(folder, *, kernel="another", shares_locks=False, holds="time.sleep(60)"):
    """A process that holds the lock of a folder, as if it ran on another kernel."""
    code = HOLDS.replace(
        "with lock_folder",
        f"""
from sat_vg.backbone_finetuning.utils import folder_lock
folder_lock._kernel = lambda: {kernel!r}
folder_lock._RENEWED_EVERY_S, folder_lock._STALE_AFTER_S, folder_lock._SETTLED_AFTER_S = 0.1, 1.0, 0.3
if not {shares_locks}:
    folder_lock.lock_file = lambda descriptor: True  # it locks, and no other host can see it
with lock_folder""",
    ).replace("time.sleep(60)", holds)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], **pipes, text=True)


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("_RENEWED_EVERY_S", 0.1), ("_STALE_AFTER_S", 1.0), ("_SETTLED_AFTER_S", 0.3)):
        monkeypatch.setattr(folder_lock, name, seconds)


def test_a_run_on_another_host_is_seen_by_its_renewals_and_its_death_by_their_end(tmp_path, quick):
    holder = on_another_kernel(tmp_path)
    assert holder.stdout.readline() == "locked\n"
    refusal = f"another host, which renews its lock .process {holder.pid} on "
    with pytest.raises(ConfigError, match=refusal), lock_folder(tmp_path):
        pytest.fail("two at once")
    holder.kill()
    holder.communicate()
    with lock_folder(tmp_path):
        pass


def test_whoever_was_halted_until_its_lock_was_taken_over_ends_at_once(tmp_path, quick):
    holder = on_another_kernel(tmp_path)
    assert holder.stdout.readline() == "locked\n"
    holder.send_signal(signal.SIGSTOP)
    with lock_folder(tmp_path):
        holder.send_signal(signal.SIGCONT)
        _, err = holder.communicate(timeout=20)
        assert holder.returncode == 1
        assert f"process {os.getpid()} on " in err
        assert "was not renewed" in err
        assert (tmp_path / LOCK).exists()  # it is no longer its to remove


@pytest.mark.parametrize("shares_locks", [True, False])
def test_of_starters_that_race_for_a_dead_ones_lock_one_gets_it(tmp_path, shares_locks):
    lease = {"kernel": "gone", "processes": "p", "token": "t", "renewals": 9}
    (tmp_path / LOCK).write_text(json.dumps({"pid": 7, "host": "elsewhere", "started": "then", **lease}))
    how = {"shares_locks": shares_locks, "holds": "sys.stdin.read()"}  # until its input is closed
    racers = [on_another_kernel(tmp_path, kernel=f"k{n}", **how) for n in range(3)]
    deadline = time.monotonic() + 60
    while sum(racer.poll() is None for racer in racers) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    ended = [racer.communicate(timeout=60) for racer in racers]
    assert [out.splitlines()[-1:] for out, _ in ended].count(["locked"]) == 1, ended
    assert sorted(racer.returncode for racer in racers) == [0, 1, 1], ended
    assert sum("ConfigError" in err for _, err in ended) == 2, ended


@pytest.mark.skipif(sys.platform != "linux", reason="containers of Linux")
def test_a_run_that_was_killed_in_one_container_goes_on_in_the_next(tmp_path):
    def start(host):
        code = HOLDS.replace("import sys, time", f"import sys, time, socket; socket.sethostname({host!r})")
        command = ["unshare", "--map-root-user", "--uts", "--pid", "--fork", "--kill-child", sys.executable]
        return subprocess.Popen(
            [*command, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    first = start("pod-1")
    if first.stdout.readline() != "locked\n":
        pytest.skip(f"no namespaces here: {first.communicate()[1]}")
    second = start("pod-2")
    assert "in use by another run (process " in second.communicate(timeout=60)[1]
    first.kill()  # with it, all in its container
    first.communicate()
    third = start("pod-2")
    lines = third.stdout.readline(), third.stdout.readline()
    assert "taken over from process " in lines[0]
    assert " on pod-1 since " in lines[0]
    assert lines[1] == "locked\n"
    third.kill()
    third.communicate()


def test_a_lock_that_somebody_removed_is_not_taken_from_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "_RENEWED_EVERY_S", 1000.0)
    with lock_folder(tmp_path):
        (tmp_path / LOCK).unlink()
        other = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "locked\n"
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == other.pid
    other.kill()
    other.communicate()


def test_a_folder_that_was_removed_meanwhile_hides_no_other_error(tmp_path):
    with pytest.raises(ConfigError, match="what went wrong"), lock_folder(tmp_path / "run", "choose another"):
        shutil.rmtree(tmp_path / "run")
        raise ConfigError("what went wrong")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"', "\0\0", "[" * 4000])
def test_a_lock_that_was_cut_off_is_no_obstacle(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with lock_folder(tmp_path):
        pass


def test_where_the_file_system_locks_nothing_the_process_is_looked_for(tmp_path, holder, monkeypatch, quick):
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
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / LOCK)
    (tmp_path / "folder" / LOCK).mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "pipe", tmp_path / "folder"):
        with pytest.raises(ConfigError, match="cannot be written to"), lock_folder(folder):
            pytest.fail("it is a file")


def test_a_name_that_is_too_long_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written to"), lock_folder(tmp_path / ("x" * 300)):
        pass


def test_a_process_number_that_none_can_have_is_of_no_process(tmp_path):
    holder = folder_lock._own_text() | {"pid": 2**70}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
