"""Checks and rates of this library on one device, with nothing but drawn images: under six minutes on one GPU.

    python tests/gpu/run.py --out gpu.json                    # `make gpu`
    python tests/gpu/run.py --device cpu --quick --out cpu.json   # the same on tiny networks, without a GPU

Every check has a name and ends as "ok", "failed" or "skipped", with a reason; exit code 1 if one failed. The JSON
file holds results, rates, seconds and versions. No network is needed.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from device_bench import Bench, Skipped
from gpu_checks import CHECKS
from gpu_rates import RATES

from sat_vg.backbone_finetuning.models.artifact import current_versions


def run_one(name: str, work: Callable[[Bench], dict[str, Any]], bench: Bench, deadline: float) -> dict[str, Any]:
    """One check or rate: how it ended, its figures, its seconds."""
    began = time.monotonic()
    if began > deadline:
        return {"result": "skipped", "reason": "no time was left", "seconds": 0.0}
    try:
        found: dict[str, Any] = {"result": "ok", **work(bench)}
    except Skipped as reason:
        found = {"result": "skipped", "reason": str(reason)}
    except Exception as error:  # noqa: BLE001 - the others shall still run; the JSON and the exit code tell
        found = {"result": "failed", "reason": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {**found, "seconds": round(time.monotonic() - began, 2)}


def main(arguments: list[str] | None = None) -> int:
    """Run all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks and images")
    parser.add_argument("--only", nargs="+", choices=(*CHECKS, *RATES), default=(*CHECKS, *RATES))
    parser.add_argument("--minutes", type=float, default=5.5, help="nothing is begun after so many")
    parser.add_argument("--out", default="gpu.json")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU of CUDA here; --device cpu --quick runs what needs none", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAT_VG_CACHE"] = str(Path(folder) / "cache")
        bench = Bench(torch.device(options.device), options.quick, Path(folder))
        found = {}
        for name, work in {**CHECKS, **RATES}.items():
            if name in options.only:
                found[name] = run_one(name, work, bench, began + 60 * options.minutes)
                print(f"{name}: {json.dumps({k: v for k, v in found[name].items() if k != 'trace'})}", flush=True)
    device = torch.cuda.get_device_name(bench.device) if bench.is_cuda else platform.processor() or platform.machine()
    versions = {**current_versions(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    report = {
        "device": device,
        "versions": versions,
        "quick": options.quick,
        "seconds": round(time.monotonic() - began, 1),
        "checks": {name: found[name] for name in CHECKS if name in found},
        "rates": {name: found[name] for name in RATES if name in found},
    }
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}, after {report['seconds']:.0f} s")
    return int(any(one["result"] == "failed" for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
