"""What does not go together with weights in shards."""

from collections.abc import Mapping
from typing import Any


def sharding_problems(values: Mapping[str, Any]) -> list[str]:
    """What contradicts ``shard_weights``, a line for each."""
    if not values["shard_weights"]:
        return []
    beside = "shard_weights = True:"
    problems = []
    if values["batch_size"] == "auto":
        problems.append(
            f"{beside} batch_size = 'auto' is measured on one device with all weights; give a number, for example 32"
        )
    if values["compile"]:
        problems.append(f"{beside} compile = True was not made for weights in shards; leave one of the two out")
    if values["channels_last"]:
        problems.append(
            f"{beside} channels_last = True: weights in that format cannot be divided; leave channels_last out"
        )
    if values["autocast_dtype"] == "fp16":
        problems.append(
            f"{beside} autocast_dtype = 'fp16' scales the loss, which was not tried with weights in shards; use bf16"
        )
    if values["strategy"] in ("linear_probe", "lp_ft") and values["probe_solver"] == "exact":
        problems.append(
            f"{beside} strategy = {values['strategy']!r} with probe_solver = 'exact' solves for the head on one "
            "process; set probe_solver to sgd, or leave shard_weights out"
        )
    return problems
