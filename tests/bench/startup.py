"""What a training command takes beside its steps: until its first step, and how the rest grows with the images.

    python tests/bench/startup.py --repeats 5 --out startup.json

*Launch*: from the start of ``python -m sat_vg.backbone_finetuning.train`` on 400 drawn images to the moment its
progress bar appears, which is before the first step, against the start of Python to the end of ``import torch,
torchvision``, in turns. (How long a process takes to end is in neither.)
*Other*: wall time of a whole command less the training seconds that it logged (so validation by a small network is in
it), for 1, 2 and 4 times the images, in turns; the slope is in milliseconds an image.
"""

import argparse
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from whole_commands import draw

TRAIN = [sys.executable, "-m", "sat_vg.backbone_finetuning.train"]
BASE = (1920, 400)  # training and validation images of the first size


def command(data: Path) -> list[str]:
    return [
        *TRAIN, "--dataset_path", str(data), "--backbone", "custom_cnn", "--pretrained", "false", "--num_epochs", "1",
        "--image_size", "32", "--warmup_epochs", "0", "--num_workers", "0",
    ]  # fmt: skip


def seconds_to_import() -> float:
    clock = time.time()
    code = "import time, torch, torchvision; print(time.time())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout) - clock


def seconds_to_first_step(data: Path, folder: Path) -> float:
    """Until the bar of the first epoch appears in a terminal; the command is ended then."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 100))  # in a terminal without columns there is no bar
    environment = {**os.environ, "SAT_VG_CACHE": str(folder / "cache")}
    clock = time.perf_counter()
    child = subprocess.Popen(command(data), cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=its)
    os.close(its)
    seen = b""
    while b"epoch 1" not in seen:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the other side is closed
            raise SystemExit(f"the command ended before its first step:\n{seen.decode(errors='replace')}") from None
    seconds = time.perf_counter() - clock
    child.kill()
    child.wait()
    os.close(ours)
    return seconds


def other_seconds(data: Path, folder: Path) -> float:
    """Wall time of a whole command less its training steps."""
    environment = {**os.environ, "SAT_VG_CACHE": str(folder / "cache")}
    clock = time.perf_counter()
    subprocess.run(command(data), cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - clock
    lines = [json.loads(line) for line in (folder / "logs/finetune/metrics.jsonl").read_text().splitlines()]
    epoch = next(line for line in lines if "val_accuracy" in line)
    return seconds - float(epoch["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    found: dict[str, list[float]] = {"import": [], "first step": []}
    with tempfile.TemporaryDirectory() as around:
        small = Path(around, "400")
        draw(small, 320, 80, 64)
        for _ in range(options.repeats):
            found["import"].append(seconds_to_import())
            with tempfile.TemporaryDirectory(dir=around) as folder:
                found["first step"].append(seconds_to_first_step(small, Path(folder)))
        for times in (1, 2, 4):
            draw(Path(around, f"x{times}"), times * BASE[0], times * BASE[1], 64)
        for _ in range(options.repeats):
            for times in (1, 2, 4):
                with tempfile.TemporaryDirectory(dir=around) as folder:
                    seconds = other_seconds(Path(around, f"x{times}"), Path(folder))
                found.setdefault(f"other, {times}x", []).append(seconds)
            if options.out:
                Path(options.out).write_text(json.dumps(found, indent=1))
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):.2f} s ({min(values):.2f} – {max(values):.2f})")
    differences = [step - imported for step, imported in zip(found["first step"], found["import"], strict=True)]
    print(f"first step after the imports of torch and torchvision: {statistics.median(differences):.2f} s")
    slopes = [
        (four - one) / (3 * sum(BASE)) for one, four in zip(found["other, 1x"], found["other, 4x"], strict=True)
    ]
    print(f"slope of the rest: {1e3 * statistics.median(slopes):.2f} ms an image")


if __name__ == "__main__":
    main()
