"""Where and in which formats the model computes, for devices that are not here too."""

import pytest
import torch

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_precision

LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    ("device", "wanted", "is_grouped", "expected"),
    [
        ("cpu", None, True, LAST),
        ("cuda", None, False, LAST),
        ("cuda", None, True, CONTIGUOUS),
        ("cuda", True, True, LAST),
        ("cpu", False, False, CONTIGUOUS),
        ("mps", None, False, CONTIGUOUS),
        ("mps", True, False, CONTIGUOUS),  # as a model trained elsewhere says that is evaluated here
    ],
)
def test_memory_format_by_device(device, wanted, is_grouped, expected):
    found = choose_precision(torch.device(device), False, "auto", wanted, is_grouped)
    assert found.memory_format is expected


class Noted(torch.Tensor):
    """Notes how it is copied."""

    def to(self, device, non_blocking=False):
        self.copied = (device.type, non_blocking)
        return self


@pytest.mark.parametrize(("device", "may_go_on"), [("cuda", True), ("cuda:1", True), ("mps", False), ("cpu", False)])
def test_only_copies_to_cuda_may_still_run_when_their_source_is_let_go_of(device, may_go_on):
    images, targets = (torch.zeros(2, 3).as_subclass(Noted) for _ in range(2))
    Batch(images, targets, torch.arange(2)).to(torch.device(device))
    assert [images.copied, targets.copied] == 2 * [(torch.device(device).type, may_go_on)]


def _set(owner, name, value):
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


CHANGES = {
    "the format of autocast": lambda _: Precision(torch.device("cpu"), torch.bfloat16),
    "the memory format": lambda _: Precision(torch.device("cpu"), torch.float32, CONTIGUOUS),
    "TF32 of convolutions": _set(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
    "how kernels are chosen": _set(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
    "deterministic kernels": _set(torch.backends.cudnn, "deterministic", not torch.backends.cudnn.deterministic),
    "cuDNN": _set(torch.backends.cudnn, "version", lambda: 1),
    "oneDNN": _set(torch.backends.mkldnn, "is_available", lambda: False),
    "the version of torch": _set(torch, "__version__", "2.6.0"),
    "the instructions": _set(torch.backends.cpu, "get_cpu_capability", lambda: "NO AVX"),
    "AMX": _set(torch.cpu, "_is_amx_tile_supported", lambda: "another answer"),
    "the threads": _set(torch, "get_num_threads", lambda: 77),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_numbers_is_part_of_the_arithmetic(change, monkeypatch):
    plain = Precision(torch.device("cpu"), torch.float32)
    before = plain.arithmetic
    assert before == Precision(torch.device("cpu"), torch.float32).arithmetic
    other = CHANGES[change](monkeypatch) or plain
    assert other.arithmetic != before


def test_tf32_of_products_is_part_of_the_arithmetic():
    plain, was = Precision(torch.device("cpu"), torch.float32), torch.backends.cuda.matmul.allow_tf32
    before = plain.arithmetic
    try:
        torch.backends.cuda.matmul.allow_tf32 = not was
        assert plain.arithmetic != before
    finally:
        torch.backends.cuda.matmul.allow_tf32 = was
    assert plain.arithmetic == before
