"""Which device computes, and in which precision a training step runs on it."""

import torch


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def training_autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it fast (CUDA, or a CPU with matrix tiles); else float32.

    bfloat16 has float32's range, so no gradient scaler is needed. Inference and scoring stay in float32: their
    figures are compared between images.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)  # not in every torch from 2.6 on
        fast = bool(has_tiles and has_tiles())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)
