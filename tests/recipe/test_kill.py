"""Nothing is lost: real training processes that are killed, stopped, starved of disk and handed damaged files.

The run that nothing happens to is started as users start it. What happens to others happens to forks (``lives.py``),
and in the slow tests to fresh processes too.
"""

import math
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import environment, small_disk, write_classes
from lives import Life, instants, none_left
from run_outputs import lines_of, read, require_equal, same

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

EPOCHS = 14  # of three steps
FLAGS = [
    "--backbone", "shufflenet_v2_x0_5", "--pretrained", "false", "--image_size", "32", "--batch_size", "6",
    "--warmup_epochs", "0", "--learning_rate", "3e-3", "--lr_scheduler", "plateau",
    "--lr_step_size", "1", "--early_stopping_patience", "0", "--early_stopping_metric", "val_loss", "--mixup_alpha",
    "0.4", "--dropout", "0.3", "--log_every", "2", "--save_every_steps", "2", "--save_frequency", "2",
    "--strategy", "progressive", "--ema_decay", "0.9", "--log_dir", "logs", "--checkpoint_dir", "ckpt",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("kill") / "images", train=6)


def command(images: Path, *more: object) -> list[str]:
    flags = ["--dataset_path", str(images), *FLAGS, "--num_epochs", str(EPOCHS), *map(str, more)]
    return [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *flags]


STARTED: list[Life] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    with none_left(STARTED):
        yield


def start(folder: Path, images: Path, *more: object, is_fresh: bool = False) -> Life:
    STARTED.append(Life(command(images, *more), folder, environment(folder.parent), is_fresh))
    return STARTED[-1]


def undisturbed(images: Path, folder: Path, epochs: int) -> Path:
    """The run that nothing happened to."""
    life = start(folder, images, "--num_workers", 0, "--num_epochs", epochs, is_fresh=True)
    assert life.wait() == 0, life.err
    assert len(lines_of(life.folder)) == epochs + 3 * epochs // 2
    assert len({line["learning_rate"] for line in lines_of(life.folder)}) > 1  # the plateau's history mattered
    assert max(line["epoch"] for line in lines_of(life.folder)) == epochs
    return life.folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(images, tmp_path_factory.mktemp("whole") / "run", EPOCHS)


def kill_often(images: Path, folder: Path, kills: int, epochs: int, is_fresh: bool) -> None:
    """Start, kill and start again, then let the run come to its end."""
    draw, groups, seen = random.Random(kills), [], []
    while len(groups) < kills:
        more = ("--num_workers", 2 * (len(groups) % 2), "--num_epochs", epochs)
        life = start(folder, images, *more, is_fresh=is_fresh)
        kinds = instants(life, draw)
        kind = ("any", "checkpoint", "validation", "early", "best model", "preparation")[len(groups) % 6]
        kinds[kind]()
        if life.process.poll() is None:
            seen.append(kind)
        else:
            assert life.process.returncode == 0, life.err  # it came to its end before the instant
            pytest.fail(f"the run was over after {len(groups)} kills; give it more EPOCHS")
        # The parent alone, so that its workers are orphans, or all of them.
        (os.kill if draw.random() < 0.5 else os.killpg)(life.process.pid, signal.SIGKILL)
        assert life.wait() == -signal.SIGKILL
        groups.append(life.process.pid)
    assert len(set(seen)) == 6, seen
    life = start(folder, images, "--num_workers", 0, "--num_epochs", epochs, is_fresh=is_fresh)
    assert life.wait() == 0, life.err
    deadline = time.monotonic() + 15
    for group in groups:
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.1)
            pytest.fail("workers outlived their parent")


@pytest.mark.parametrize(
    ("kills", "epochs"),
    [
        (6, EPOCHS),  # each kind of instant
        pytest.param(20, 40, marks=pytest.mark.slow),
        pytest.param(100, 160, marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
)
def test_kills_at_any_instant_change_nothing(images, whole, tmp_path, kills, epochs):
    kill_often(images, tmp_path / "run", kills, epochs, is_fresh=epochs != EPOCHS)
    if epochs != EPOCHS:
        whole = undisturbed(images, tmp_path / "whole", epochs)
    require_equal(whole, tmp_path / "run", epochs)


BRIEF = [
    (signal.SIGUSR1, "validation"),
    (signal.SIGTERM, "checkpoint"),
    (signal.SIGINT, "any"),
    (signal.SIGTERM, "preparation"),
]
LONG = [(signal.SIGTERM, "any"), *BRIEF[:2], (signal.SIGINT, "validation"), *BRIEF[2:]]


@pytest.mark.parametrize("signals", [BRIEF, pytest.param(LONG, marks=pytest.mark.slow)], ids=["brief", "long"])
def test_signals_of_schedulers_stop_the_run_so_that_it_goes_on(images, whole, tmp_path, signals):
    draw = random.Random(3)
    for number, (sent, kind) in enumerate(signals):
        life = start(tmp_path / "run", images, "--num_workers", 2 * (number % 2), is_fresh=signals is LONG)
        instants(life, draw)[kind]()
        began = time.monotonic()
        os.killpg(life.process.pid, sent)
        if kind == "checkpoint":  # twice, as coreutils' timeout does
            with suppress(ProcessLookupError):
                os.killpg(life.process.pid, sent)
        code = life.wait(60)
        assert time.monotonic() - began < 30
        assert code == (130 if sent == signal.SIGINT else 75), (kind, life.err)
        name = "Ctrl-C" if sent == signal.SIGINT else sent.name
        if kind in ("preparation", "any") and "saved in" not in life.err:  # the training had not begun
            assert life.err.strip() == f"stopped at once by {name}; what was saved before is untouched"
        else:
            assert f"stopped by {name} in epoch " in life.err
            assert "the same command goes on from there" in life.err
    life = start(tmp_path / "run", images, "--num_workers", 0)
    assert life.wait() == 0, life.err
    assert "going on with" in life.out
    require_equal(whole, tmp_path / "run", EPOCHS)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_a_signal_while_libraries_are_loaded_ends_the_command_at_once(images, tmp_path):
    for sent, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        life = start(tmp_path / "run", images, is_fresh=True)
        maps = Path(f"/proc/{life.process.pid}/maps")
        assert life.until(lambda maps=maps: "libtorch" in maps.read_text())
        life.process.send_signal(sent)
        assert life.wait(30) == code
        assert life.err.startswith("stopped at once by ")
        assert not (tmp_path / "run/ckpt").exists()


@pytest.mark.parametrize("sizes", [(4, 12), pytest.param((4, 8, 12), marks=pytest.mark.slow)])
def test_a_full_disk_leaves_the_last_good_state(images, whole, tmp_path, sizes):
    with small_disk(tmp_path / "run", sizes[0]) as resize:
        steps = []
        for mebibytes in sizes:  # a state takes 4.3 MiB, the best model 1.5
            resize(mebibytes)
            life = start(tmp_path / "run", images)
            assert life.wait() == 1, (mebibytes, life.out, life.err)
            assert "cannot be written" in life.err
            assert "run the same command again" in life.err
            states = list((tmp_path / "run/ckpt").glob("*.pt"))
            steps.append(max((read(path).get("state", {"step": 0})["step"] for path in states), default=0))
        assert steps == sorted(steps)
        assert steps[-1] > 0  # the last disk had room for a state
        resize(64)
        life = start(tmp_path / "run", images)
        assert life.wait() == 0, life.err
        require_equal(whole, tmp_path / "run", EPOCHS)


@pytest.fixture
def run_here(images, tmp_path, monkeypatch, capfd):
    """Run the command in this process: its exit code, standard output and standard error."""
    from sat_vg.backbone_finetuning.train import main

    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))

    def run(folder: Path, *more: object) -> tuple[int, str, str]:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        capfd.readouterr()
        code = main(command(images, *more)[3:])
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def finished(run_here, tmp_path):
    """A small finished run with three states, and a function that runs its command again."""

    def run() -> tuple[int, str, str]:
        return run_here(tmp_path, "--num_epochs", 2, "--save_every_steps", 1, "--max_checkpoints", 3)

    assert run()[0] == 0
    shutil.copytree("ckpt", "kept")
    return run


def put_back() -> None:
    shutil.rmtree("ckpt")
    shutil.copytree("kept", "ckpt")
    Path("ckpt/last.pt").unlink()
    Path("ckpt/last.pt").hardlink_to("ckpt/step_00000006.pt")


@pytest.mark.parametrize(
    ("cuts", "flips"),
    [((0, 9), (5,)), pytest.param(range(10), (0, 3, 10), marks=pytest.mark.slow)],
    ids=["some", "each tenth"],
)
def test_a_last_state_that_is_cut_or_altered_gives_way_to_the_one_before(finished, cuts, flips):
    whole = Path("kept/step_00000006.pt").read_bytes()
    want = [read(Path("kept") / name) for name in ("step_00000006.pt", "best_model.pt")]
    damages = [whole[: len(whole) * tenth // 10] for tenth in cuts]
    for place in ((len(whole) - 10) * tenth // 10 for tenth in flips):
        damages.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for number, damage in enumerate(damages):
        put_back()
        with Path("ckpt/last.pt").open("r+b") as file:  # in place: the file under its other name is the same one
            file.write(damage)
            file.truncate(len(damage))
        code, out, err = finished()
        assert code == 0, (number, err)
        assert "Traceback" not in err
        assert "cannot be read" in out or "no file of plain tensors" in out
        assert "going on with ckpt/step_00000005.pt: " in out
        got = [read(Path("ckpt") / name) for name in ("step_00000006.pt", "best_model.pt")]
        for one, two in zip(want, got, strict=True):
            for content in (one, two):
                content.get("state", {}).pop("train_seconds", None)
            assert all(same(one[name], two[name]) for name in one), number
        assert read(Path("ckpt/last.pt"))["state"]["finished"]


def test_without_a_sound_state_the_way_out_is_named(finished):
    for path in Path("ckpt").glob("step_*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    code, _, err = finished()
    assert code == 2
    assert "Traceback" not in err
    for part in ("no state of the run can be read", "last.pt", "step_00000004.pt", "--resume never"):
        assert part in err, part


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_not(images, run_here, tmp_path):
    first = start(tmp_path / "run", images, "--num_workers", 2, "--num_epochs", 400)
    assert first.until(lambda: (first.ckpt / "last.pt").exists())
    lines = (tmp_path / "run/logs/metrics.jsonl").read_text().splitlines()
    code, _, err = run_here(tmp_path / "run", "--num_epochs", 400)
    assert code == 2, err
    assert "is in use by another run" in err
    assert f"process {first.process.pid} on " in err
    assert first.process.poll() is None
    first.process.kill()  # the parent alone: its workers shall not keep the lock
    first.process.wait()
    second = start(tmp_path / "run", images, "--num_epochs", 400)
    assert second.until(second.has_said("going on with"))
    second.process.send_signal(signal.SIGTERM)
    assert second.wait(60) == 75
    assert not list((tmp_path / "run").glob("*/.lock"))
    assert (tmp_path / "run/logs/metrics.jsonl").read_text().splitlines()[: len(lines)] == lines


def test_folders_that_cannot_be_written_fail_before_training(run_here, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "ckpt").write_text("a file in place of the folder")
    code, out, err = run_here(folder)
    assert code == 2, err
    assert "ckpt' cannot be written to" in err
    assert "--checkpoint_dir DIR" in err
    assert "phases:" not in out


def test_saving_often_changes_nothing(images, with_all_states, tmp_path):
    """Nor does keeping few: the other run saves at the end alone."""
    whole = with_all_states
    seldom = ("--save_every_steps", 0, "--save_frequency", 99, "--max_checkpoints", 1)
    life = start(tmp_path / "run", images, "--num_epochs", 6, *seldom)
    assert life.wait() == 0, life.err
    names = sorted(path.name for path in life.ckpt.iterdir())
    assert names == ["best_model.pt", "last.pt", "step_00000018.pt"]
    for part in ("network", "optimizer"):
        assert same(read(whole / "ckpt/last.pt")[part], read(life.ckpt / "last.pt")[part])
    assert lines_of(whole) == lines_of(life.folder)
    assert all(math.isfinite(line["gradient_norm"]) for line in lines_of(whole) if "val_loss" not in line)


@pytest.fixture(scope="module")
def with_all_states(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 epochs that kept the state of every step."""
    kept = ("--num_epochs", 6, "--save_every_steps", 1, "--save_every_minutes", 1e-9, "--max_checkpoints", 99)
    life = start(tmp_path_factory.mktemp("all_states") / "run", images, *kept)
    assert life.wait() == 0, life.err
    return life.folder


@pytest.mark.parametrize("lies", ["elsewhere", "in the same folder"])
def test_a_run_that_was_resumed_from_a_path_goes_on_where_it_was_killed(images, with_all_states, tmp_path, lies):
    whole, cut = with_all_states, tmp_path / "cut"
    path = whole / "ckpt/step_00000005.pt"
    if lies == "in the same folder":  # where newer states take its place
        shutil.copytree(whole, cut)
        path = cut / "ckpt/step_00000005.pt"

    def begin() -> Life:
        return start(cut, images, "--num_epochs", 6, "--save_every_steps", 1, "--resume", path)

    def has_come_to(step: int) -> bool:
        content = read(cut / "ckpt/last.pt") if (cut / "ckpt/last.pt").exists() else {}
        return bool(content.get("resumed_from")) and content["state"]["step"] >= step

    for step, going_on in ((8, f"going on with {path}: "), (12, "going on with ckpt/last.pt: ")):
        life = begin()
        # The run before may have come further than asked until it was killed: its state is no sign of this one.
        begun = life.has_said(going_on)
        assert life.until(lambda step=step, begun=begun: begun() and has_come_to(step), every=0.05), (
            life.out + life.err
        )
        life.process.kill()
        life.process.wait()
    for said in ("going on with ckpt/last.pt: ", "the run in ckpt has finished"):
        life = begin()
        assert life.wait() == 0, life.err
        assert life.has_said(said)(), life.out
        assert not list(cut.glob("*/earlier_run_*"))
        assert path.exists() is (lies == "elsewhere")
        one, two = (read(folder / "ckpt/last.pt") for folder in (whole, cut))
        assert all(same(one[part], two[part]) for part in ("network", "optimizer", "average"))
        one, two = (read(folder / "ckpt/best_model.pt")["state_dict"] for folder in (whole, cut))
        assert same(one, two)
        assert lines_of(whole)[-len(lines_of(cut)) :] == lines_of(cut)
        assert len(lines_of(cut)) == len(lines_of(whole)) - (0 if lies == "in the same folder" else 3)


@pytest.mark.skipif(not shutil.which("unshare"), reason="makes containers with unshare")
def test_a_run_that_was_killed_in_one_container_goes_on_in_the_next(images, tmp_path):
    def begin(host: str) -> Life:
        made = ["unshare", "--map-root-user", "--uts", "--pid", "--fork", "--kill-child"]
        inside = ["sh", "-c", f'hostname {host} && exec "$@"', "sh", *command(images, "--num_epochs", 4)]
        STARTED.append(Life([*made, *inside], tmp_path / "run", environment(tmp_path), is_fresh=True))
        return STARTED[-1]

    first = begin("pod-1")
    if not first.until(lambda: (first.ckpt / "last.pt").exists()):
        pytest.skip(f"no namespaces here: {first.err}")
    first.process.kill()  # and with it all that is in its container
    first.process.wait()
    second = begin("pod-2")
    assert second.wait() == 0, second.err
    assert second.has_said("going on with ckpt/")(), second.out
    assert " on pod-1 since " in second.out
    assert len([line for line in lines_of(second.folder) if "val_loss" in line]) == 4
    assert not list(second.folder.glob("*/.lock"))


def test_a_damaged_line_of_the_log_is_no_end_of_the_run(finished):
    put_back()
    Path("ckpt/last.pt").unlink()
    Path("ckpt/step_00000006.pt").unlink()
    with Path("logs/metrics.jsonl").open("a") as file:
        file.write("null")
    code, out, err = finished()
    assert code == 0, err
    assert "damaged, and dropped" in out
    assert [line["epoch"] for line in lines_of(Path()) if "val_loss" in line] == [1, 2]
