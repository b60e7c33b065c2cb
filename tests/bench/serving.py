"""``sat-vg serve`` under load: rate, latencies, memory over time, and answers against those of ``sat-vg predict``.

    python tests/bench/serving.py --images DIR --checkpoint best_model.pt --table serving.md

Each client sends one image after another over one connection, as fast as it is answered. Clients and server share the
cores. Without ``--checkpoint`` a MobileNetV2 of random weights is served, which costs the same.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from runs import machine, paragraph, shown

BOUNDARY = "boundary-of-the-parts"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def start(checkpoint: Path, folder: Path, options: list[str]) -> tuple["subprocess.Popen[str]", int]:
    """A server, and its port."""
    words = [sys.executable, "-m", "sat_vg", "serve", str(checkpoint), "--port", "0", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=folder)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://[^:]+:(\d+)", line):
            return process, int(found[1])
    raise SystemExit("the server did not start")


def body_of(path: Path) -> bytes:
    """A request with one image."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{path.name}"\r\n\r\n'
    return head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def client(port: int, bodies: list[bytes], end: float, first: int, found: list[tuple[float, int, int]]) -> None:
    """Send images until the time is over; adds seconds, status and number of the image."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    number = first
    while time.perf_counter() < end:
        began = time.perf_counter()
        connection.request("POST", "/predict", bodies[number % len(bodies)], HEADERS)
        answer = connection.getresponse()
        content = answer.read()
        found.append((time.perf_counter() - began, answer.status, number % len(bodies)))
        if number < first + 3:
            ANSWERS[number % len(bodies)] = json.loads(content)
        number += 1


ANSWERS: dict[int, dict] = {}


def resident(pid: int) -> float:
    """Memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def largest_difference(checkpoint: Path, paths: list[Path]) -> float:
    """Of a probability from that of ``sat-vg predict``, over the images whose answers were kept."""
    kept = sorted(ANSWERS)
    words = [sys.executable, "-m", "sat_vg", "predict", str(checkpoint), *(str(paths[n]) for n in kept), "--json"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    worst = 0.0
    for number, line in zip(kept, lines, strict=True):
        theirs = {one["class"]: one["probability"] for one in json.loads(line)["predictions"]}
        mine = {one["class"]: one["probability"] for one in ANSWERS[number]["predictions"][0]["predictions"]}
        if mine.keys() != theirs.keys():
            raise SystemExit(f"other classes for {paths[number].name}: {mine}, {theirs}")
        worst = max([worst, *(abs(mine[name] - theirs[name]) for name in mine)])
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of images, searched at any depth")
    add("--checkpoint", type=Path, help="a best_model.pt")
    add("--clients", type=int, default=8)
    add("--seconds", type=float, default=60)
    add("--table", type=Path, help="Markdown file to write")
    add("options", nargs="*", help="of sat-vg serve, behind --")
    given = parser.parse_args()
    paths = sorted(p for p in given.images.rglob("*") if p.suffix.lower() in (".jpg", ".png", ".tif", ".tiff"))[:200]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint.resolve() if given.checkpoint else make_checkpoint(Path(folder))
        process, port = start(checkpoint, Path(folder), given.options)
        bodies, found, memory = [body_of(path) for path in paths], list[tuple[float, int, int]](), list[float]()
        began = time.perf_counter()
        threads = [
            threading.Thread(target=client, args=(port, bodies, began + given.seconds, 25 * number, found))
            for number in range(given.clients)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(given.seconds / 12)
            memory.append(resident(process.pid))
        passed = time.perf_counter() - began
        process.terminate()
        code = process.wait(60)
        difference = largest_difference(checkpoint, paths)
    report(given, found, memory, passed, code, difference)


def make_checkpoint(folder: Path) -> Path:
    """A MobileNetV2 of random weights."""
    from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

    FineTuneModel("mobilenet_v2", 21, pretrained=False, image_size=224).save_checkpoint(folder / "best_model.pt")
    return folder / "best_model.pt"


def report(
    given: argparse.Namespace,
    found: list[tuple[float, int, int]],
    memory: list[float],
    passed: float,
    code: int,
    difference: float,
) -> None:
    """Print the page and write it."""
    times = sorted(seconds for seconds, _, _ in found)
    statuses = {status: sum(one == status for _, one, _ in found) for status in sorted({s for _, s, _ in found})}
    p50, p99 = statistics.median(times), times[int(0.99 * (len(times) - 1))]
    half = memory[len(memory) // 2 :]
    rows = [
        ("requests", f"{len(found)} in {passed:.0f} s"),
        ("answers by status", ", ".join(f"{status}: {count}" for status, count in statuses.items())),
        ("rate", f"{len(found) / passed:.1f} images/s"),
        ("latency, median", f"{1000 * p50:.0f} ms"),
        ("latency, 99 %", f"{1000 * p99:.0f} ms"),
        ("memory every twelfth of the time", f"{', '.join(f'{value:.0f}' for value in memory)} MiB"),
        ("growth over the second half", f"{half[-1] - half[0]:+.1f} MiB"),
        ("largest difference of a probability from `sat-vg predict`", f"{difference:.1e}"),
        ("exit code after SIGTERM", str(code)),
    ]
    command = f"python tests/bench/serving.py {shown(sys.argv[1:])}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    text = (
        f"# Serving under load\n\n{paragraph(machine().removesuffix('; one thread a run.') + '.')}\n\n"
        f"```\n{command}\n```\n\n"
        + paragraph(f"{given.clients} clients on the same machine, each with one connection and one image a request.")
        + f"\n\n| | |\n|---|---|\n{table}\n"
    )
    print(text)
    if given.table:
        given.table.write_text(text)


if __name__ == "__main__":
    main()
