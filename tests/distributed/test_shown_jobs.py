"""The commands of docs/scaling.md, the examples for clusters, and two "machines" that share only the network."""

import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, environment
from forks import ForkedRanks

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SMALL = (
    "--pretrained false --image_size 32 --batch_size 6 --num_epochs 3 --num_workers 0 --warmup_epochs 0 "
    "--mixed_precision false --log_dir logs --checkpoint_dir ckpt"
)
CLUSTER = REPOSITORY / "configs/cluster"


def shown_commands() -> list[str]:
    page = (REPOSITORY / "docs/scaling.md").read_text()
    return [line for body in re.findall(r"^```\n(.*?)^```", page, re.M | re.S) for line in body.splitlines() if line]


def test_the_shown_commands(class_folders, tmp_path):
    """By forked processes; the test below starts torchrun itself."""
    commands = [line for line in shown_commands() if line.startswith("torchrun")]
    assert len(commands) == 2
    for number, command in enumerate(commands):
        folder, said = tmp_path / str(number), tmp_path / f"{number}.txt"
        folder.mkdir()
        said.touch()
        more = f"{SMALL} --num_epochs 1 --backbone squeezenet1_1"
        words = shlex.split(f"{command.replace('DIR', str(class_folders))} {more}")
        module = words.index("-m")
        assert words[1:3] == ["--nproc_per_node", "2"]
        assert_launcher_knows(words[1:module], restarts=3 * number)
        code = ForkedRanks(2, words[module + 1], words[module + 2 :], folder, environment(tmp_path), said).wait(300)
        assert code == 0, said.read_text()
        assert "2 processes" in said.read_text()
        assert (folder / "ckpt/best_model.pt").exists()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_on_two_machines(class_folders: Path, tmp_path: Path, *more: str) -> list[str]:
    """Two launchers with caches of their own, one process each; what each of them printed."""
    port, machines = free_port(), []
    for number in range(2):
        folder = tmp_path / f"machine_{number}"
        folder.mkdir()
        launcher = [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "run"]
        flags = ["--dataset_path", str(class_folders), "--backbone", "squeezenet1_1", *shlex.split(SMALL), *more]
        machines.append(
            subprocess.Popen(
                [*launcher, "--rdzv_endpoint", f"127.0.0.1:{port}", "-m", "sat_vg.backbone_finetuning.train", *flags],
                cwd=folder,
                env={**environment(folder), "MASTER_ADDR": "127.0.0.1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [machine.communicate(timeout=300)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(printed)
    return printed


def test_two_machines_write_once_and_each_keeps_what_it_needs(class_folders, tmp_path):
    cached = ("--strategy", "last_layers", "--use_augmentation", "false")
    printed = run_on_two_machines(class_folders, tmp_path, *cached)
    speaks = ["best model" in text for text in printed]
    assert sorted(speaks) == [False, True]
    first, other = (tmp_path / f"machine_{number}" for number in (speaks.index(True), speaks.index(False)))
    assert (first / "ckpt/best_model.pt").exists() and (first / "logs/metrics.jsonl").exists()
    assert not (other / "ckpt").exists() and not (other / "logs").exists()
    kept = [sorted((folder / "cache/computed").rglob("features.bin")) for folder in (first, other)]
    assert [len(files) for files in kept] == [2, 2], "of the training and of the validation images, on both machines"
    assert [path.read_bytes() for path in kept[0]] == [path.read_bytes() for path in kept[1]]
    epochs = [json.loads(line) for line in (first / "logs/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs if "val_accuracy" in line] == [1, 2, 3]
    assert torch.load(first / "ckpt/last.pt", weights_only=True)["state"]["finished"]


def test_the_slurm_example():
    script = (CLUSTER / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=True)
    command = script.replace("\\\n", " ").partition("srun ")[2].replace("$1", "DIR").replace("$2", "RUN")
    launcher, _, flags = command.partition("-m sat_vg.backbone_finetuning.train")
    options = shlex.split(launcher)
    assert options[0] == "torchrun"
    assert_launcher_knows(options[1:], restarts=3)
    config = parse_command_line(shlex.split(flags), "train").config
    assert config.batch_size == 1024 and config.checkpoint_dir == "RUN/checkpoints"


def test_the_kubernetes_example():
    job = yaml.safe_load((CLUSTER / "pytorchjob.yaml").read_text())
    assert (job["kind"], job["apiVersion"]) == ("PyTorchJob", "kubeflow.org/v1")
    assert job["spec"]["nprocPerNode"] == "8"
    container = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    launcher, module = container["command"][0], container["command"][2]
    assert (launcher, module) == ("torchrun", "sat_vg.backbone_finetuning.train")
    config = parse_command_line(container["command"][3:], "train").config
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/data", "/dev/shm"} == mounts
    assert config.dataset_path.startswith("/data") and config.log_dir.startswith("/data")


def assert_launcher_knows(options: list[str], restarts: int) -> None:
    from torch.distributed.run import get_args_parser

    known, unknown = get_args_parser().parse_known_args([*options, "script.py"])
    assert unknown == [] and known.max_restarts == restarts
