"""What machine a figure was measured on, in one line."""

import platform
from pathlib import Path

import psutil
import torch


def describe() -> str:
    """Processor, cores that may be used, accelerator if any, and the versions that matter."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the platform module's word stands
    # Not everywhere can a process be bound to cores.
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    parts = [f"{processor}, {cores} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join([*parts, f"torch {torch.__version__}", f"Python {platform.python_version()}"])
