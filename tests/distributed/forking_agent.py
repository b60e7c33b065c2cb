"""What torchrun runs, without its starts of Python: torch's agent, which forks the ranks and starts them again.

The arguments are the number of processes, how often they are started again, and those of ``traced_training.py``.
"""

import signal
import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from traced_training import main, trace_steps


def run_rank(arguments: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # in place of the agent's handlers
    trace_steps()
    if code := main(arguments):
        sys.exit(code)


if __name__ == "__main__":
    count, restarts, *arguments = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=int(count), max_restarts=int(restarts), run_id="run",
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, run_rank)(arguments)
