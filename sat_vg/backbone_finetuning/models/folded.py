"""Batch norm folded into the convolution before it: a copy of frozen stages that saves a pass over every map."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sat_vg.backbone_finetuning.models.stages import Stage


def fold_batch_norm(network: nn.Module, stages: Sequence[Stage], dtype: torch.dtype) -> nn.Module | None:
    """A copy of ``network`` that runs ``stages`` without passes for batch norm, under autocast to ``dtype``.

    It shares all weights with ``network`` but those of the folded convolutions, which it holds in ``dtype``. So it is
    good for as long as these stages are not trained. Left as they are: stages that ``torch.fx`` cannot trace or that
    have hooks, and of the others every pair of layers but a plain ``Conv2d`` and a plain ``BatchNorm2d`` with running
    statistics, both in eval mode, each run once, the second one on the first one's output, which nothing else sees.

    Returns:
        The copy; None if there is nothing to fold.
    """
    names = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    owners = Counter(module for stage in stages for module in set(stage.modules(network)))
    folded: dict[str, nn.Module] = {}
    for stage in stages:
        for conv_name, norm_name in _pairs(network, stage):
            conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
            if any(count[layer] > 1 for count in (names, owners) for layer in (conv, norm)):
                continue
            fused = fuse_conv_bn_eval(conv, norm).to(dtype)  # type: ignore[type-var, arg-type]
            if all(parameter.isfinite().all() for parameter in fused.parameters()):  # float16 ends at 65504
                folded |= {conv_name: fused, norm_name: nn.Identity()}
    if not folded:
        return None
    # Copied is only what holds a folded layer; all else, and every tensor, is shared.
    holders = {network, *(m for path, m in network.named_modules() if any(n.startswith(f"{path}.") for n in folded))}
    shared = (*network.parameters(), *network.buffers(), *(m for m in network.modules() if m not in holders))
    copied: nn.Module = copy.deepcopy(network, {id(one): one for one in shared})
    for name, layer in folded.items():
        copied.set_submodule(name, layer)
    return copied


class _Steps(nn.Module):
    """A stage as a module, for the tracer."""

    def __init__(self, network: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.network, self.stage = network, stage

    def forward(self, value: Tensor) -> Tensor:
        return self.stage.run(self.network, value)


def _pairs(network: nn.Module, stage: Stage) -> Iterator[tuple[str, str]]:
    """Names of convolutions and of the batch norms that alone see their output."""
    modules = list(stage.modules(network))
    has_hooks = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)
    if has_hooks or not any(type(module) is nn.BatchNorm2d for module in modules):
        return
    try:
        graph = fx.Tracer().trace(_Steps(network, stage))
    except Exception:  # noqa: BLE001 - any code of any network may fail on what stands for a tensor
        return
    runs = Counter(node.target for node in graph.nodes if node.op == "call_module")
    runs.update(str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv_name, norm_name = (str(n.target).removeprefix("network.") for n in (before, node))
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        is_pair = type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None
        tensors = [*conv.parameters(), *norm.parameters(), *norm.buffers()]
        is_plain = all(type(tensor) in (nn.Parameter, Tensor) for tensor in tensors)  # and no shard of one
        runs_once = runs[before.target] == runs[node.target] == 1
        if is_pair and is_plain and runs_once and not (conv.training or norm.training):
            yield conv_name, norm_name
