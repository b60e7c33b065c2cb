"""Device, number formats and memory format, and process settings that speed depends on."""

import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from sat_vg.backbone_finetuning.utils.allocator import keep_freed_memory
from sat_vg.backbone_finetuning.utils.cores import usable_cores
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.ranks import Ranks

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """Device, autocast format and memory format of a run.

    Attributes:
        device: where the model is.
        autocast_dtype: format of convolutions and matrix products; float32 switches autocast off.
        memory_format: of weights and images; channels_last is what CPUs and tensor cores convolve fastest in.
        process: settings of the whole process, in words.
    """

    device: torch.device
    autocast_dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last
    process: str = ""

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context of forward passes; disabled in float32."""
        enabled = self.autocast_dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.autocast_dtype if enabled else None, enabled=enabled)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler; enabled in float16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)

    def place_model(self, model: nn.Module) -> None:
        """Move a model's weights to the device and into the memory format."""
        model.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def place_images(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in the memory format."""
        return images.contiguous(memory_format=self.memory_format)

    @property
    def description(self) -> str:
        """All of it in words."""
        return ", ".join(part for part in (str(self), self.process) if part)

    @property
    def arithmetic(self) -> tuple[object, ...]:
        """All that decides which numbers come out beside weights and images: equal for equal bits."""
        packages = (torch, torchvision, sys.modules.get("timm"))
        versions = (*(getattr(package, "__version__", None) for package in packages), torch.backends.cudnn.version())
        cpu = (
            torch.get_num_threads(),
            torch.backends.cpu.get_cpu_capability(),
            torch.cpu._is_avx512_bf16_supported(),
            torch.cpu._is_amx_tile_supported(),
            torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        )
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        gpu = (
            (cudnn.allow_tf32, matmul.allow_tf32),
            (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction),
            (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        )
        chosen = (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())
        return (str(self), versions, cpu, gpu, chosen)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        layout = "channels_last" if self.memory_format is torch.channels_last else "contiguous"
        return f"{name}, {str(self.autocast_dtype).removeprefix('torch.')}, {layout}"


def choose_device(wanted: str, ranks: Ranks | None = None) -> torch.device:
    """The device by name; ``auto`` takes a GPU where there is one. Of several processes each has a GPU of its own.

    Raises:
        ConfigError: there is no such device here, or several processes are to share one.
    """
    if ranks is not None and ranks.count > 1:
        wanted = _of_rank(wanted, ranks)
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"device = {wanted!r}: no device of torch; use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device = {wanted!r}: not supported; use auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device = {wanted!r}: this machine has {torch.cuda.device_count()} GPUs; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device = 'mps': this machine has none; use auto or cpu")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # seeds and questions about the hardware go to the current device
    return device


def _of_rank(wanted: str, ranks: Ranks) -> str:
    """The device of one of several processes, by name."""
    if wanted in ("cpu", "mps") or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if wanted not in ("auto", "cuda"):
        raise ConfigError(
            f"device = {wanted!r}: there are {ranks.count} processes, each with a GPU of its own; use auto, cuda "
            "or cpu"
        )
    found = torch.cuda.device_count()
    if ranks.local_count > found:
        raise ConfigError(
            f"{ranks.local_count} processes were started on a machine with {found} GPUs; start one for each GPU "
            "(torchrun --nproc_per_node), or use --device cpu"
        )
    return f"cuda:{ranks.local_rank}"


def choose_precision(
    device: torch.device,
    mixed_precision: bool,
    wanted_dtype: Literal["auto", "bf16", "fp16"] = "auto",
    channels_last: bool | None = None,
    has_grouped_convolutions: bool = False,
) -> Precision:
    """Number formats: as asked for, or what the device is quickest in.

    bf16 where the device computes in it, fp16 on older GPUs, fp32 elsewhere. channels_last everywhere but on MPS and
    for grouped convolutions on GPUs, which it slows down by a third and more, as timm's published tables of both
    formats tell.

    Args:
        device: where the model is.
        mixed_precision: False: fp32 throughout.
        wanted_dtype: of autocast.
        channels_last: the memory format; None: chosen. Never on MPS.
        has_grouped_convolutions: whether the backbone is such a one, as ResNeXt and RegNet are.

    Raises:
        ConfigError: the device cannot compute in the format that is asked for.
    """
    if channels_last is None:
        channels_last = not (device.type == "cuda" and has_grouped_convolutions)
    # On MPS the backward pass of batch norm fails in this format.
    layout = torch.channels_last if channels_last and device.type != "mps" else torch.contiguous_format
    if not mixed_precision:
        return Precision(device, torch.float32, layout)
    if wanted_dtype != "auto":
        if device.type == "cpu" and wanted_dtype == "fp16":
            raise ConfigError("autocast_dtype = 'fp16': a CPU computes in bf16 or fp32; use auto or bf16")
        return Precision(device, _DTYPES[wanted_dtype], layout)
    if device.type == "cuda":
        return Precision(device, torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16, layout)
    if device.type == "cpu" and _cpu_computes_in_bf16():
        return Precision(device, torch.bfloat16, layout)
    return Precision(device, torch.float32, layout)


def set_up_process(device: torch.device, num_threads: int | None, keeps_freed_memory: bool | None, tf32: bool) -> str:
    """Settings of the whole process that its speed depends on.

    Args:
        device: where the model is.
        num_threads: that a step computes with on the CPU; None: as ``OMP_NUM_THREADS`` says, or one for each core
            that the process may use.
        keeps_freed_memory: see ``allocator.keep_freed_memory``; None: where the CPU computes.
        tf32: whether GPUs may round the inputs of fp32 matrix products and convolutions to 10 bits.

    Returns:
        What was set, in words.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if num_threads is None and "OMP_NUM_THREADS" not in os.environ:
        num_threads = min(usable_cores(), torch.get_num_threads())
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    count = torch.get_num_threads()
    said = [f"{count} thread{'' if count == 1 else 's'}"] if device.type == "cpu" else []
    wants_to_keep = device.type == "cpu" if keeps_freed_memory is None else keeps_freed_memory
    if wants_to_keep and keep_freed_memory():
        said.append("freed memory is kept")
    if device.type == "cuda":
        said.append("TF32" if tf32 else "no TF32")
    return ", ".join(said)


def _cpu_computes_in_bf16() -> bool:
    # Where the processor lacks these instructions bf16 is emulated, several times slower than fp32.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_num_workers(wanted: int | None, device: torch.device, num_cores: int) -> int:
    """Decoding processes: none on a CPU, where they would take cores from the training; up to 8 beside a GPU."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else min(8, max(1, num_cores - 1))
