"""Settings that change how fast a run goes, on real runs: where they shall change nothing, to the bit."""

import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import TINY, environment, train_command

pytestmark = pytest.mark.recipe

# Stages before the last are frozen, and two versions of each image take turns.
VIEWS = (*TINY, "--strategy", "last_layers", "--cached_views", 2, "--num_epochs", 5, "--mixed_precision", "false",
         "--early_stopping_patience", 0)  # fmt: skip


def same_results(one, two) -> None:
    numbers = [
        [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in run.lines]
        for run in (one, two)
    ]
    assert numbers[0] == numbers[1]
    weights = [torch.load(run.best_model, weights_only=True)["state_dict"] for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_stored_features_change_nothing(train_here, class_folders, tmp_path):
    data = ("--dataset_path", class_folders)
    with_it = train_here(*data, *VIEWS, folder="with")
    assert with_it.code == 0, with_it.err
    assert list((tmp_path / "cache").rglob("features.bin"))
    without = train_here(*data, *VIEWS, "--cache", "off", folder="without")
    same_results(with_it, without)
    other = train_here(*data, *VIEWS, "--cached_views", 3, folder="other")
    assert [line["train_loss"] for line in other.epochs] != [line["train_loss"] for line in with_it.epochs]


@pytest.mark.slow
def test_kills_while_features_are_stored_and_used(class_folders, tmp_path):
    def command(name):
        return train_command(
            tmp_path / name, "--dataset_path", class_folders, "--strategy", "last_layers", "--num_epochs", 6,
            "--use_augmentation", "false", "--save_every_steps", 2, "--early_stopping_patience", 0,
        )  # fmt: skip

    def start(name):
        return subprocess.Popen(
            command(name), env=environment(tmp_path, SAT_VG_CACHE=str(tmp_path / f"cache_{name}")), cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    whole = start("whole")
    said, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, said
    generator = random.Random(0)
    for _ in range(3):
        process = start("killed")
        while process.poll() is None and not list((tmp_path / "cache_killed").rglob("features.bin")):
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = start("killed")
    said, _ = last.communicate(timeout=200)
    assert last.returncode == 0, said
    states = [
        torch.load(tmp_path / name / "ckpt/last.pt", weights_only=True)["network"] for name in ("whole", "killed")
    ]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not list((tmp_path / "cache_killed").rglob(".*.tmp"))


def test_the_profile_accounts_for_the_run(train_here, class_folders):
    run = train_here(*TINY, "--dataset_path", class_folders, "--profile", "true")
    assert run.code == 0, run.err
    for name in ("wait for data", "copy and mix", "forward", "backward", "optimizer", "validation", "checkpoint"):
        assert name in run.out
    events = json.loads((run.folder / "logs/profile_trace.json").read_text())["traceEvents"]
    counts = {name: sum(event["name"] == name for event in events) for name in ("forward", "backward", "validation")}
    assert counts == {"forward": 10, "backward": 10, "validation": 2}
    ends = 0.0
    for event in sorted(events, key=lambda event: event["ts"]):
        assert event["ts"] >= ends - 1  # one after the other, in microseconds
        ends = event["ts"] + event["dur"]
    assert (run.folder / "logs/profile.txt").read_text().strip() in run.out
    plain = train_here(*TINY, "--dataset_path", class_folders, folder="plain")
    assert [line["train_loss"] for line in plain.epochs] == [line["train_loss"] for line in run.epochs]
    assert not (plain.folder / "logs/profile.txt").exists()


def test_a_batch_size_that_is_found_is_kept_on_going_on(train_here, class_folders):
    data = (*TINY, "--dataset_path", class_folders, "--batch_size", "auto")
    first = train_here(*data, "--num_epochs", 2)
    assert first.code == 0, first.err
    assert "batch_size: 2 (20 steps an epoch)" in first.out
    content = torch.load(first.folder / "ckpt/last.pt", weights_only=True)
    assert content["config"]["batch_size"] == 2
    again = train_here(*data, "--num_epochs", 2)
    assert again.code == 0, again.err
    assert "has finished" in again.out


# Each training in a process of its own, with only so much more address space for its steps than before them. What a
# step needs depends on versions and processors, so that it is measured; of less and less of it, some is enough for a
# part of the batch alone. In between a native library may also crash.
WITH_LITTLE_MEMORY = """
import os, resource, sys, torch, torch._dynamo  # which the first optimizer imports, once for all
from pathlib import Path
from sat_vg.backbone_finetuning.training import run as recipe
from sat_vg.backbone_finetuning import train
sound, limit = recipe.fit, None

def bytes_now(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 2**10

def fit(*arguments):
    before = bytes_now("VmSize")
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (before + limit, resource.RLIM_INFINITY))
    result = sound(*arguments)
    # What comes after, the pictures, was not measured and is not limited.
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if limit is None:
        Path("needed").write_text(str(bytes_now("VmPeak") - before))
    return result

def train_in(folder):
    if not os.fork():
        code = train.main([*sys.argv[1:], "--log_dir", f"{folder}/logs", "--checkpoint_dir", f"{folder}/ckpt"])
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    for stream in (sys.stdout, sys.stderr):
        print(f"{folder}: exit code {code}", file=stream, flush=True)

recipe.fit = fit
train_in("whole")
needed = int(Path("needed").read_text())
for percent in (1, *range(95, 20, -5)):
    limit = needed * percent // 100
    train_in(f"with_{percent}")
    last = Path(f"with_{percent}/ckpt/last.pt")
    if last.exists() and torch.load(last, weights_only=True)["state"]["micro_batch_size"] < 27:
        break
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space")
@pytest.mark.skipif(
    torch.__version__.startswith("2.10."), reason="convolutions of torch 2.10 that get no memory end the process"
)
def test_too_little_memory_halves_the_parts_and_goes_on(class_folders, tmp_path):
    arguments = train_command(
        tmp_path / "run", "--dataset_path", class_folders, "--image_size", 224, "--batch_size", 27,
        "--num_epochs", 1, "--keep_freed_memory", "false", "--cache", "off", *TINY,
        "--mixed_precision", "false",  # with AMX, oneDNN makes no bf16 kernel at all under such a limit
    )[3:]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", WITH_LITTLE_MEMORY, *arguments], capture_output=True, text=True,
        env=environment(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out, err = (re.split(r"^(.*): exit code (.*)\n", s, flags=re.MULTILINE) for s in (done.stdout, done.stderr))
    names, codes = out[1::3], out[2::3]
    assert (names[:2], codes[:2]) == (["whole", "with_1"], ["0", "1"]), (done.stdout, done.stderr)
    assert "the memory is too small for a step" in err[3]
    assert codes[-1] == "0", (done.stdout, done.stderr)
    assert "Traceback" not in err[3] + err[-4]
    assert "the memory is too small for 27 images at once: going on with 13" in out[-4]
    state = torch.load(tmp_path / names[-1] / "ckpt/last.pt", weights_only=True)["state"]
    assert 1 <= state["micro_batch_size"] <= 13
    assert state["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("mixed_precision", ["false", "true"])
def test_a_compiled_run_of_several_phases_trains_as_an_eager_one(train_here, class_folders, mixed_precision):
    settings = ("--dataset_path", class_folders, "--backbone", "custom_cnn", "--pretrained", "false", "--image_size",
                32, "--strategy", "lp_ft", "--probe_solver", "sgd", "--num_epochs", 2, "--warmup_epochs", 0,
                "--batch_size", 6, "--mixed_precision", mixed_precision)  # fmt: skip
    eager = train_here(*settings, folder="eager")
    compiled = train_here(*settings, "--compile", "true", folder="compiled")
    assert (eager.code, compiled.code) == (0, 0), compiled.err
    assert [line["phase"] for line in compiled.epochs] == ["linear_probe", "full"]
    for mine, theirs in zip(compiled.epochs, eager.epochs, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.05)
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=0.05)


@pytest.mark.parametrize("compiler", ["/nonexistent", "/bin/false"])
def test_a_compiler_that_fails_is_named_with_the_way_out(class_folders, tmp_path, compiler):
    command = train_command(tmp_path, "--dataset_path", class_folders, *TINY, "--num_epochs", 1, "--compile", "true")
    of_torch = {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=tmp_path,
        env=environment(tmp_path, **of_torch),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: compile = true: torch.compile failed" in done.stderr and "--compile false" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_needs_no_matplotlib(class_folders, tmp_path):
    """It takes as long to import as the checks of a thousand images."""
    code = "import sys\nfrom sat_vg.backbone_finetuning import train\n"
    code += "try:\n    train.main(sys.argv[1:])\nfinally:\n    print(sorted(m for m in sys.modules if '.' not in m))"
    flags = train_command(tmp_path, "--dataset_path", class_folders, *TINY, "--num_epochs", 2)[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, flags)],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        cwd=tmp_path,
    )
    assert "done: validation accuracy" in done.stdout, done.stderr
    assert "'tensorboard'" in done.stdout
    assert "'matplotlib'" not in done.stdout
    assert (tmp_path / "logs/learning_curves.png").stat().st_size > 1000
