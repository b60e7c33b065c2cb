"""Where and in which number format the model computes."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.utils.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """Device, autocast format and memory format of a run.

    Attributes:
        device: where the model is.
        autocast_dtype: format of convolutions and matrix products; float32 switches autocast off.
        memory_format: of weights and images; channels_last is what CPUs and tensor cores convolve fastest in.
    """

    device: torch.device
    autocast_dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes; does nothing in float32."""
        enabled = self.autocast_dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.autocast_dtype if enabled else None, enabled=enabled)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler; hands everything through but in float16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)

    def place_model(self, model: nn.Module) -> None:
        """Move a model's weights to the device and into the memory format."""
        model.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def place_images(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in the memory format."""
        return images.contiguous(memory_format=self.memory_format)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        layout = "channels_last" if self.memory_format is torch.channels_last else "contiguous"
        return f"{name}, {str(self.autocast_dtype).removeprefix('torch.')}, {layout}"


def choose_device(wanted: str) -> torch.device:
    """The device by name; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
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


def choose_precision(device: torch.device, mixed_precision: bool) -> Precision:
    """bf16 where the device computes in it, fp16 on older GPUs, fp32 elsewhere and where it is asked for."""
    if not mixed_precision:
        return Precision(device, torch.float32)
    if device.type == "cuda":
        return Precision(device, torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16)
    if device.type == "cpu" and _cpu_computes_in_bf16():
        return Precision(device, torch.bfloat16)
    return Precision(device, torch.float32)


def _cpu_computes_in_bf16() -> bool:
    # Where the processor lacks these instructions bf16 is emulated, several times slower than fp32.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_num_workers(wanted: int | None, device: torch.device, num_cores: int) -> int:
    """Decoding processes: none on a CPU, where they would take cores from the training; up to 8 beside a GPU."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else min(8, max(1, num_cores - 1))
