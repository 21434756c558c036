"""Convolutions of a single volume on a CPU by oneDNN, where torch by itself takes a slower kernel."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEW = 8
"""Of output channels: a transposed convolution into fewer is not for oneDNN."""


class FastConvolutions(TorchFunctionMode):
    """A context for inference: 3-D convolutions of one float32 volume on a CPU are oneDNN's, as those of several are.

    Torch's own rule of when to take oneDNN was made for pictures: for a batch of one small volume it unrolls the input
    into a matrix instead, which is up to 20 times slower. Results agree to float32's rounding. Everything else, and
    whatever is to be differentiated, is left as it is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for every function of its own inside the context."""
        if func is torch.conv3d and not kwargs and len(args) == 7 and _applies(args[0], args[1]):
            x, weight, bias, stride, padding, dilation, groups = args
            if not isinstance(padding, str):
                return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
        if func is torch.conv_transpose3d and not kwargs and len(args) == 8 and _applies(args[0], args[1]):
            x, weight, bias, stride, padding, output_padding, groups, dilation = args
            if any(isinstance(size, int) for size in (stride, padding, output_padding, dilation)):
                return func(*args)
            if weight.shape[1] < FEW:
                # As a matrix product it takes half as long as by oneDNN, which torch takes for all but small volumes.
                if groups == 1:
                    return torch.ops.aten.slow_conv_transpose3d(
                        x, weight, weight.shape[2:], bias, stride, padding, output_padding, dilation
                    )
            elif hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise"):  # what torch.compile uses
                return torch.ops.mkldnn._convolution_transpose_pointwise(
                    x, weight, bias, padding, output_padding, stride, dilation, groups, "none", [], ""
                )
        return func(*args, **(kwargs or {}))


def _applies(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == 5
        and x.shape[0] == 1
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )
