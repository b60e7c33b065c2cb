"""Settings that contradict one another about what is trained when."""

from collections.abc import Mapping
from typing import Any


def strategy_problems(values: Mapping[str, Any]) -> list[str]:
    """What is contradictory about strategy, phases and their solver, a line for each."""
    problems = []
    strategy, epochs = values["strategy"], values["phase_epochs"]
    freezing = [name for name in ("freeze_layers", "freeze_early_layers", "unfreeze_layers") if values[name]]
    if strategy is not None and freezing:
        problems.append(
            f"strategy = {strategy!r}: says what is trained, and so does {freezing[0]} = {values[freezing[0]]!r}; "
            "leave one of the two out"
        )
    if values["last_layers"] != 1 and strategy != "last_layers":
        problems.append(
            f"last_layers = {values['last_layers']}: has no effect with strategy = {strategy!r}; set strategy to "
            "last_layers, or leave it out"
        )
    if values["probe_solver"] != "exact" and strategy not in ("linear_probe", "lp_ft"):
        problems.append(
            f"probe_solver = {values['probe_solver']!r}: has no effect with strategy = {strategy!r}; leave it out, "
            "or set strategy to linear_probe or lp_ft"
        )
    if values["wise_ft"] and strategy == "linear_probe" and values["probe_solver"] == "exact":
        problems.append(
            "wise_ft = True: probe_solver = 'exact' solves for the head, so there are no weights before it to mix "
            "with; set probe_solver to sgd, or leave wise_ft out, or take another strategy, such as lp_ft"
        )
    if values["best_weights"] == "average" and not values["ema_decay"]:
        problems.append(
            f"best_weights = {values['best_weights']!r}: has no effect while ema_decay = {values['ema_decay']} keeps "
            "no average; leave it out, or set ema_decay, for example to 0.99"
        )
    if epochs is not None and strategy not in ("progressive", "lp_ft"):
        problems.append(
            f"phase_epochs = {list(epochs)}: has no effect with strategy = {strategy!r}, which has one phase; leave "
            "it out, or set strategy to progressive or lp_ft"
        )
    elif epochs is not None and strategy == "lp_ft" and values["probe_solver"] == "exact":
        problems.append(
            f"phase_epochs = {list(epochs)}: an exact probe is solved for and takes one pass; set probe_solver to "
            "sgd, or leave phase_epochs out"
        )
    elif epochs is not None and sum(epochs) != values["num_epochs"]:
        problems.append(
            f"phase_epochs = {list(epochs)}: add up to {sum(epochs)}, but num_epochs = {values['num_epochs']}; "
            "change one of the two"
        )
    return problems
